"""The real process while nobody reads its log: every call is answered, and what is missing is told."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin.errors import MAX_BODY
from tests.contract.engine import refusal
from tests.contract.process import Server, children, eventually, running
from tests.contract.samples import sample

LONGEST = 8192
"""Bytes of a line; dockerd's reader bears 65,536."""
CALLS = 900
"""More than a pipe has room for, whatever its size."""


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def refused(server: Server, length: int = 100_000) -> str:
    """Have a call refused that repeats to itself what came in; it is answered within seconds."""
    request = sample("NetworkDriver.CreateNetwork", NetworkID="a." * (length // 2))
    status, body = server.call("NetworkDriver.CreateNetwork", json.dumps(request).encode())
    assert status == 400
    return refusal(body)


def refuse_many(server: Server, calls: int = CALLS) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: refused(server, 10_000), range(calls)):
            pass


def unread(reader: int) -> bytes:
    """What is in a pipe at this moment."""
    data = b""
    while select.select([reader], [], [], 0)[0]:
        data += os.read(reader, 1 << 20)
    return data


def test_nobody_reads_it(tmp_path: Path) -> None:
    """Each call tells of itself twice, so the pipe is soon full."""
    with pipe() as (reader, writer), running(tmp_path, output=writer) as server:
        refuse_many(server)
        assert server.oper_info() < 9
        os.kill(server.worker(), signal.SIGKILL)
        assert server.oper_info() < 9
        refuse_many(server, 20)
        assert os.get_blocking(writer), "the flags of whoever else has the pipe are its own"
        before = unread(reader)
        refused(server)
        after = unread(reader)
    first, *last = after.splitlines()
    found = re.search(rb" WARNING plugin.logs: (\d+) lines are missing here: nobody has read", first)
    assert found
    assert int(found[1]) >= 20
    names = rb"^\S+ [A-Z]+ (stub|plugin\.\w+|gunicorn\.\w+): "
    for line in [*before.splitlines(), *last]:
        assert re.search(names, line), f"a line by half: {line!r}"


def test_the_reader_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """As an engine under SIGSTOP, or one that hangs."""
    log = tmp_path / "read"
    with pipe() as (reader, writer), log.open("wb") as output:
        engine = subprocess.Popen(["cat"], stdin=reader, stdout=output)
        try:
            with running(tmp_path, output=writer) as server:
                engine.send_signal(signal.SIGSTOP)
                refuse_many(server)
                assert server.oper_info() < 9
                engine.send_signal(signal.SIGCONT)

                def told() -> bool:
                    refused(server)
                    return b"lines are missing here" in log.read_bytes()

                eventually(told)
        finally:
            engine.kill()
            engine.wait()


def test_the_reader_is_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with running(tmp_path, output=writer) as server:
        os.close(writer)
        os.close(reader)
        refused(server)
        os.kill(server.worker(), signal.SIGKILL)
        assert server.oper_info() < 9
        assert len(children(server.process.pid)) == 1
        assert server.stop() < 9
    assert server.process.returncode == 0


@pytest.mark.parametrize("length", [100_000, MAX_BODY - 1000])
def test_the_largest_request_is_a_short_line_and_a_short_answer(tmp_path: Path, length: int) -> None:
    with running(tmp_path) as server:
        answer = refused(server, length)
        assert answer.startswith("NetworkID: ")
        assert answer.endswith("the engine sends letters and digits only")
        assert len(answer) < 1500
        assert server.oper_info() < 9
    assert max(map(len, server.log.read_bytes().splitlines())) < LONGEST


def test_all_that_was_logged_is_there_when_it_ends(tmp_path: Path) -> None:
    """At a normal end, and when it cannot start."""
    for damaged, last in ((False, b"runtime stopped"), (True, b"cannot start: ")):
        if damaged:
            (tmp_path / "damaged").touch()
        with pipe() as (reader, writer):
            server = Server(tmp_path, output=writer)
            if not damaged:
                eventually(server.oper_info)
                server.stop()
            server.process.wait(30)
            assert last in unread(reader)
