"""A host whose clock jumps by a day, there and back: what runs goes on, and what cannot says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import TlsSessions
from driver.swarm.etcd_process import EtcdProcess
from driver.wish.values import NodeId
from tests.cluster.harness import Host, endpoint, wait_until
from tests.cluster.pki import Authority
from tests.cluster.relay import Relay
from tests.cluster.test_swarm_tls import serve
from tests.e2e.containers import NOTHING, eventually, ours
from tests.e2e.test_standalone import network, run, serving
from tests.faults.clock import DAY, Clock
from tests.faults.scene import arbiter_and_worker
from tests.lab import Lab, etcd_binary

ROOT = Path(__file__).parents[2]
NAME = "a"


class Peer:
    """The host whose clock is wrong, behind a relay of its own."""

    def __init__(self, folder: Path, port: int, authority: Authority) -> None:
        self.clock = Clock(folder)
        self.relay = Relay(port)
        self.errors = folder / "errors"
        url = self.relay.url.replace("http:", "https:")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.peer", NAME, url, authority.node(NAME, "swarm-worker")],
                cwd=ROOT,
                env={**os.environ, **self.clock.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.said: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said = json.loads(line)

    def announce(self, *numbers: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, numbers)) + "\n")
        self.process.stdin.flush()

    def knows(self, *numbers: int) -> bool:
        return self.said.get("rows") == sorted(str(endpoint("", number).address) for number in numbers)

    def interrupt(self) -> None:
        """End its connections: it has to show its certificate anew."""
        self.relay.cut()
        wait_until(lambda: not self.said["connected"])
        self.relay.mend()

    def is_wrong_by(self) -> float:
        return float(self.said["time"]) - time.time()

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self._reader.join()
            self.process.stdout.close()
            self.relay.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def store(authority: Authority, tmp_path: Path) -> Iterator[EtcdProcess]:
    server = serve(etcd_binary(), authority.credentials("m1"), tmp_path / "etcd")
    yield server
    server.stop()


@pytest.fixture
def other(authority: Authority, store: EtcdProcess) -> Iterator[Host]:
    sessions = TlsSessions(authority.credentials("b", "swarm-worker"))
    host = Host("b", EtcdControlPlane(NodeId("b"), lambda: [store.url], sessions)).start()
    yield host
    host.plane.stop(leave=True)


@pytest.fixture
def peer(authority: Authority, store: EtcdProcess, tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path, int(store.url.rpartition(":")[2]), authority)
    yield made
    made.end()


@pytest.mark.store
def test_a_clock_a_day_wrong_costs_no_row(peer: Peer, other: Host) -> None:
    for wrong, numbers in ((0, [1]), (DAY, [1, 2]), (-DAY, [1, 2, 3])):
        peer.clock.turn(wrong)
        peer.announce(*numbers)
        other.join(*(endpoint("b", 10 + number) for number in numbers))
        wait_until(lambda: other.sees(endpoint(NAME, numbers[-1])), 10)  # noqa: B023 -- called at once
        wait_until(lambda: peer.knows(*numbers, *(10 + number for number in numbers)))  # noqa: B023
        assert abs(peer.is_wrong_by() - wrong) < 60

    peer.clock.turn(DAY)
    peer.interrupt()
    wait_until(lambda: peer.said["connected"], 10)

    peer.clock.turn(-DAY)
    peer.interrupt()
    wait_until(
        lambda: "clock is right" in peer.errors.read_text() and "not yet valid" in peer.errors.read_text(), 10
    )
    other.join(endpoint("b", 11))
    assert other.published()
    time.sleep(0.5)
    assert peer.knows(1, 2, 3, 11, 12, 13), "frozen, as long as it cannot come in"
    assert all(other.sees(endpoint(NAME, number)) for number in (1, 2, 3))

    peer.clock.turn(0)
    wait_until(lambda: peer.knows(1, 2, 3, 11), 15)
    assert all(other.sees(endpoint(NAME, number)) for number in (1, 2, 3))


@pytest.mark.lab
def test_containers_start_whatever_the_clock_says(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with Lab(engines=["28.5"]) as lab, serving(lab.hosts[0], "tests.faults.clock", env=clock.environment):
        host = lab.hosts[0]
        assert eventually(lambda: arbiter_and_worker(host)[1], 10)
        pair = arbiter_and_worker(host)
        with network(host, "--ipam-driver", "pyoverlay"):
            first = run(host, "first")
            for number, wrong in enumerate((DAY, -DAY, 0)):
                clock.turn(wrong)
                another = run(host, f"c{number}")
                assert another.pings("first")
                assert first.pings(f"c{number}")
                host.docker("rm", "-f", f"c{number}")
        assert eventually(lambda: ours(host) == NOTHING), ours(host)
        assert "libfaketime" in host.path(f"/proc/{pair[1]}/maps").read_text(), (
            "the clock was right all the time"
        )
        assert arbiter_and_worker(host) == pair, "it was taken for one that hangs"
