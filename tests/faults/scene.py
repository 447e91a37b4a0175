"""The stage for faults: a Swarm with containers that talk all the time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import DRIVER, Container, Playground, eventually
from tests.faults.checker import Checker, Expected
from tests.faults.facts import foreign, plant, processes
from tests.faults.meters import Datagrams, Stream, TcpMeter, UdpMeter
from tests.lab import Host, Lab

ENGINES = ("28.5", "28.5", "20.10", "26.1")
MANAGERS = 3


@dataclass(slots=True)
class Scene:
    """A lab with a network, a container of it on every host ("anchor"), and somebody who checks."""

    lab: Lab
    ground: Playground
    checker: Checker
    built: Path
    network: str = ""
    anchors: dict[str, Container] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """What a fault's beginning leaves for its end."""

    @property
    def expected(self) -> Expected:
        return self.checker.expected

    @property
    def worker(self) -> Host:
        """The host that most faults are done to."""
        return self.lab.host("h4")

    @property
    def leader(self) -> Host:
        """The host that leads the Swarm."""
        name = eventually(lambda: leader_of(self.lab), 60)
        return self.lab.host(name)

    def anchor(self, host: Host) -> Container:
        """Start a host's anchor; it comes back by itself with its engine."""
        found = eventually(lambda: self.ground.run(host, self.network, "--restart", "always"), 30)
        self.anchors[host.name] = found
        return found

    def meter(self, one: Host, other: Host) -> PairMeter:
        """Measure between the anchors of two hosts."""
        return PairMeter(self.anchors[one.name], self.anchors[other.name], self.network)


def leader_of(lab: Lab) -> str:
    """The name of the Swarm's leader as the managers tell; empty while there is none."""
    for host in lab.hosts:
        if host.engine_running:
            listed = host.docker("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", check=False)
            for line in listed.splitlines():
                if line.endswith("Leader"):
                    return line.split()[0]
    return ""


@contextmanager
def scene(built: Path, engines: Sequence[str] = ENGINES, managers: int = MANAGERS) -> Iterator[Scene]:
    """A Swarm of *engines* with the plugin, foreign objects, and one anchor a host, all reachable."""
    with Lab(engines=engines) as lab:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: put(host, built, PYOVERLAY_LOG_LEVEL="info"), lab.hosts))
        lab.swarm(managers=managers)
        assert eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        for host in lab.hosts:
            plant(host)
        expected = Expected(foreign={host.name: foreign(host) for host in lab.hosts})
        made = Scene(lab, Playground(lab), Checker(lab, expected), built)
        made.network = made.ground.network()
        for host in lab.hosts:
            made.anchor(host)
        made.checker.right_within(20)
        yield made


# --- meters on a scene --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """What the meters of a pair of hosts said."""

    pair: str
    there: Datagrams
    back: Datagrams
    stream: Stream

    @property
    def lost(self) -> int:
        return self.there.lost + self.back.lost

    @property
    def whole(self) -> bool:
        """Whether nothing at all was lost."""
        return not (self.lost or self.stream.broken or self.stream.late)

    @property
    def last_loss(self) -> float:
        return max(self.there.last_loss, self.back.last_loss)

    def __str__(self) -> str:
        return f"{self.pair}: there {self.there}; back {self.back}; TCP {self.stream}"


class PairMeter:
    """Datagrams both ways and a stream between the anchors of two hosts."""

    def __init__(self, one: Container, other: Container, network: str) -> None:
        self.pair = f"{one.host.name}-{other.host.name}"
        to_one, to_other = one.address(network), other.address(network)
        self._there = UdpMeter(one, other, to_other)
        self._back = UdpMeter(other, one, to_one)
        self._stream = TcpMeter(one, other, to_other)

    def abandon(self) -> None:
        """End what still runs, after a failure."""
        for meter in (self._there, self._back, self._stream):
            meter.abandon()

    def stop(self) -> Reading:
        with ThreadPoolExecutor(3) as pool:
            stream = pool.submit(self._stream.stop)
            there, back = pool.map(lambda meter: meter.stop(), (self._there, self._back))
        return Reading(self.pair, there, back, stream.result())


# --- the plugin's processes ---------------------------------------------------------------------------------


def arbiter_and_worker(host: Host) -> tuple[int, int]:
    """The plugin's two processes, as numbered in the host; zeros for what is not there."""
    pids = processes(host, "plugin.cli serve")
    parents = {pid: parent_of(host, pid) for pid in pids}
    arbiter = next((pid for pid in pids if parents[pid] not in pids), 0)
    worker = next((pid for pid in pids if parents[pid] == arbiter), 0)
    return arbiter, worker


def parent_of(host: Host, pid: int) -> int:
    try:
        status = host.path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


def signal(host: Host, pid: int, name: str) -> None:
    """Send a signal to a process of the lab."""
    host.run(["sh", "-c", f"kill -{name} {pid}"])


def plugin_answers(host: Host) -> bool:
    """Whether the plugin answers the engine's first question on its socket."""
    identity = json.loads(host.api("GET", f"/plugins/{DRIVER}/json"))["Id"]
    path = f"/run/docker/plugins/{identity}/pyoverlay.sock"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(sys.argv[1]);"
        "s.sendall(b'POST /Plugin.Activate HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n');"
        "sys.exit(b'NetworkDriver' not in s.makefile('rb').read())"
    )
    return host.run(["python3", "-c", script, path], check=False).returncode == 0


def until(question: Callable[[], object], what: str, seconds: float = 30) -> float:
    """Wait until *question* is true; return how long that took."""
    began = time.monotonic()
    assert eventually(question, seconds), f"after {seconds:g} s still not: {what}"
    return time.monotonic() - began
