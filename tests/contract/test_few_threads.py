"""The real process where no thread can be had any more: calls wait for each other, and all are answered."""

from __future__ import annotations

import json
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.contract.process import Server, eventually, running
from tests.contract.samples import sample
from tests.contract.stub import SLOW

CALLS = 12


def allow_no_more(pid: int) -> None:
    """Let a process have no room for another thread's stack: that is refused like a thread above a limit."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit_memory(pid, pages * resource.getpagesize() + (4 << 20))


def limit_memory(pid: int, size: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def join_slowly(server: Server) -> int:
    request = sample("NetworkDriver.Join", EndpointID="slow1")
    return server.call("NetworkDriver.Join", json.dumps(request).encode())[0]


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_calls_take_turns_and_the_log_says_so_once(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        worker = server.worker()
        before = threads(worker)
        allow_no_more(worker)
        with ThreadPoolExecutor(CALLS) as callers:
            slow = [callers.submit(join_slowly, server) for _ in range(2)]
            quick = [callers.submit(server.oper_info) for _ in range(CALLS - 2)]
            assert all(call.result() < 4 * SLOW + 5 for call in quick)
            assert [call.result() for call in slow] == [200, 200]
        assert threads(worker) <= before + 1
        assert server.worker() == worker, "it was not restarted"
        limit_memory(worker, resource.RLIM_INFINITY)
        with ThreadPoolExecutor(CALLS) as callers:
            slow = [callers.submit(join_slowly, server) for _ in range(CALLS)]
            eventually(lambda: threads(worker) > before + 2)
            assert [call.result() for call in slow] == [200] * CALLS
    assert server.log.read_text().count("calls have to wait for each other") == 1
