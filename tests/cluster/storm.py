"""What it costs when many hosts reach the store at once: `python -m tests.cluster.storm [--hosts 100]`.

The hosts are the real client of the store, some dozens in a process. The store is the one that a Swarm's
leader runs, with mutual TLS. All of it is in a network namespace of its own, whose loopback device counts the
bytes. The hosts share this machine's processors with the store: a hundred real ones would be faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import Sessions, TlsSessions
from driver.swarm.etcd_process import EtcdProcess, EtcdSettings
from driver.swarm.identity import swarm_credentials
from driver.wish.records import View
from driver.wish.values import NodeId
from tests.cluster.harness import Host, endpoint, wait_until
from tests.cluster.pki import Authority
from tests.cluster.relay import free_port
from tests.lab import etcd_binary

PROCESSES = 4
PATIENCE = 400.0
"""Seconds after which it will not calm down any more."""


class Member(Host):
    """A host that counts how often it has lost the store."""

    lost = 0

    def on_view(self, view: View) -> None:
        self.lost += self.view.connected and not view.connected
        super().on_view(view)


class Hosts:
    """Some of the hosts, with their share of the records."""

    def __init__(self, hosts: Sequence[Member]) -> None:
        self.hosts = hosts

    @classmethod
    def start(cls, numbers: range, each: int, url: str, sessions: Sessions | None = None) -> Hosts:
        """Start those with *numbers*, with *each* so many records."""
        hosts = []
        for number in numbers:
            name = f"h{number:05}"
            host = Member(name, EtcdControlPlane(NodeId(name), lambda: [url], sessions))
            host.start()
            host.join(*(endpoint(name, number * each + i) for i in range(each)))
            hosts.append(host)
        return cls(hosts)

    def settled(self, records: int, lost: int = 0) -> bool:
        """Tell whether each has lost the store so often, and now has said and heard everything."""
        return all(
            h.lost >= lost and h.view.connected and len(h.rows()) == records and h.plane.wait_published(0)
            for h in self.hosts
        )

    def losses(self) -> int:
        """How often they have lost the store, all together."""
        return sum(host.lost for host in self.hosts)

    def stop(self) -> None:
        for host in self.hosts:
            host.plane.stop(leave=False)


def be_hosts(numbers: range, each: int, total: int, url: str, folder: str) -> None:
    """Be some hosts; for each number read, wait until all have lost the store so often and are settled."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s")
    sessions = TlsSessions(swarm_credentials(Path(folder)))
    hosts = Hosts.start(numbers, each, url, sessions)
    for line in sys.stdin:
        wanted = int(line)
        wait_until(lambda wanted=wanted: hosts.settled(total, wanted), PATIENCE)  # type: ignore[misc]
        sys.stdout.write(f"{json.dumps([time.monotonic(), hosts.losses(), memory(os.getpid())])}\n")
        sys.stdout.flush()


class Crowd:
    """All hosts, in some processes."""

    def __init__(self, stack: ExitStack, hosts: int, records: int, url: str, folder: Path) -> None:
        each, share = records // hosts, hosts // PROCESSES
        self._processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.cluster.storm", "--be", *map(str, (p * share, share, each)),
                     str(each * share * PROCESSES), url, str(folder)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )
            for p in range(PROCESSES)
        ]  # fmt: skip
        for process in self._processes:
            stack.callback(process.kill)

    def settled(self, lost: int) -> tuple[float, int, float]:
        """Wait until all are settled; return when, how often they had lost the store, and their memory."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{lost}\n")
            process.stdin.flush()
        said = [json.loads(_line(process)) for process in self._processes]
        times, losses, sizes = zip(*said, strict=True)
        return max(times), sum(losses), sum(sizes)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


class Costs:
    """What was spent since it was made."""

    def __init__(self, server: EtcdProcess) -> None:
        self._server = server
        self._began, self._bytes, self._cpu = time.monotonic(), traffic(), self._used()

    def tell(self, name: str, crowd: Crowd, lost: int, before: int, hosts: int) -> int:
        """Wait until all are settled, print what that has cost, and return how often the store was lost."""
        at, losses, size = crowd.settled(lost)
        needless = losses - before - hosts * (lost > 0)
        print(
            f"{name}: all settled after {at - self._began:.1f} s, {(traffic() - self._bytes) / 1e6:.0f} MB; "
            f"the store lost needlessly {needless} times; store {self._used() - self._cpu:.1f} s of CPU, "
            f"{memory(self.pid):.0f} MiB at most, hosts {size / hosts:.0f} MiB each at most",
            flush=True,
        )
        return losses

    @property
    def pid(self) -> int:
        assert self._server._process is not None
        return self._server._process.pid

    def _used(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def traffic() -> int:
    """Bytes that the loopback device has carried."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == "lo:")


def memory(pid: int) -> float:
    """MiB that a process has had at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextmanager
def server_at(settings: EtcdSettings) -> Iterator[EtcdProcess]:
    """Run the store as a leader does; it is empty."""
    server = EtcdProcess(settings, "127.0.0.1")
    server.start()
    try:
        assert server.wait_healthy(10)
        yield server
    finally:
        server.stop()


def storms(hosts: int, records: int, folder: Path) -> None:
    """All at once: the first start, a store that hangs for a while, and a new leader."""
    authority = Authority(folder / "pki")
    settings = EtcdSettings(str(etcd_binary()), folder / "etcd", free_port(), authority.credentials("m1"))
    with ExitStack() as stack:
        with server_at(settings) as server:
            costs = Costs(server)
            crowd = Crowd(stack, hosts, records, server.url, authority.node("w1", "swarm-worker"))
            losses = costs.tell("first start", crowd, 0, 0, hosts)
            costs = Costs(server)
            os.kill(costs.pid, signal.SIGSTOP)
            time.sleep(10)
            os.kill(costs.pid, signal.SIGCONT)
            losses = costs.tell("store hung for 10 s", crowd, 1, losses, hosts)
        with server_at(settings) as server:
            Costs(server).tell("new leader", crowd, 2, losses, hosts)


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        first, count, each, total = map(int, sys.argv[2:6])
        be_hosts(range(first, first + count), each, total, *sys.argv[6:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.apart:
        apart = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp(apart[0], [*apart, sys.executable, "-m", "tests.cluster.storm", "--apart", *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as name:
        storms(options.hosts, options.records, Path(name))


if __name__ == "__main__":
    main()
