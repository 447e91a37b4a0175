"""What a packet costs: two containers on two hosts and on one, over both overlays and the bare underlay.

    .venv/bin/python -m bench.datapath [--quick]

Throughput is iperf3's, latency sockperf's (a whole round trip). CPU seconds are those of the whole machine,
softirq included, so of both ends and of all hosts: they are all on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import BUILT_IN, OURS, UNDERLAY, Figures, Measure
from bench.report import alone
from tests.e2e.containers import Container, playground
from tests.lab import Host, Lab, wait_for

PART = "data path"
_LATENCY_PORT = 11111
_CONNECTION_PORT = 11112

ACCEPT = """
import socket, sys
with socket.create_server(("", int(sys.argv[1])), backlog=512) as server:
    while True:
        connection, _ = server.accept()
        connection.sendall(b"x")
        connection.close()
"""
CONNECT = """
import socket, sys, time
target, count, end = (sys.argv[1], int(sys.argv[2])), 0, time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    with socket.create_connection(target) as connection:
        while connection.recv(8):
            pass
    count += 1
print(count / float(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a measured route: a host, or a container on it."""

    host: Host
    pid: str = ""

    @classmethod
    def of(cls, container: Container) -> Side:
        """Return the end that a container is."""
        return cls(container.host, container.pid)

    def argv(self, *argv: str) -> list[str]:
        """Return the command that does *argv* there, with the machine's own programs."""
        return ["nsenter", "-t", self.pid, "-n", *argv] if self.pid else list(argv)

    def run(self, *argv: str) -> str:
        """Run a command there to its end."""
        return self.host.run(self.argv(*argv), timeout=60).stdout

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """Start a command there."""
        return self.host.popen(self.argv(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True)
class Route:
    """A way between two ends; *address* is the server's."""

    client: Side
    server: Side
    address: str


Sample = Mapping[Measure, float]
Test = Callable[[Route, int], Sample]


def busy() -> float:
    """Return the CPU seconds that this machine has spent with anything but waiting (proc(5), stat)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(field) for field in Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def tcp(where: str, streams: int, route: Route, seconds: int) -> Sample:
    """Measure a bulk transfer: what arrived, and what a gigabyte has cost."""
    name = f"TCP, {streams} stream{'s' * (streams > 1)}, {where}"
    result, spent = _iperf(route, seconds, "-P", str(streams))
    received = result["sum_received"]
    return {
        Measure(PART, name, "Gbit/s", "more"): received["bits_per_second"] / 1e9,
        Measure(PART, f"CPU per GB, {name}", "s"): spent / (received["bytes"] / 1e9),
    }


def udp(where: str, size: int, route: Route, seconds: int) -> Sample:
    """Measure datagrams sent as fast as they go: those that arrived, and what a million has cost."""
    name = f"UDP, {size} bytes, {where}"
    result, spent = _iperf(route, seconds, "-u", "-b", "0", "-l", str(size))
    total = result["sum"]
    arrived = total["packets"] - total["lost_packets"]
    return {
        Measure(PART, name, "packets/s", "more"): arrived / total["seconds"],
        Measure(PART, f"CPU per million packets, {name}", "s"): spent / (arrived / 1e6),
    }


def latency(where: str, protocol: str, route: Route, seconds: int) -> Sample:
    """Measure requests and their answers one after another."""
    flags = ["--tcp"] if protocol == "TCP" else []
    said = route.client.run(
        "sockperf", "ping-pong", "-i", route.address, "-p", str(_LATENCY_PORT), "-t", str(seconds),
        "--full-rtt", *flags,
    )  # fmt: skip
    times = {p: float(us) for p, us in re.findall(r"percentile (\d+\.\d+) =\s+(\d+\.\d+)", said)}
    name = f"{protocol} round trip, {where}"
    return {
        Measure(PART, f"{name}, median", "µs"): times["50.000"],
        Measure(PART, f"{name}, p99", "µs"): times["99.000"],
    }


def connections(where: str, route: Route, seconds: int) -> Sample:
    """Measure connections made, used for a byte and ended, one after another."""
    said = route.client.run(sys.executable, "-c", CONNECT, route.address, str(_CONNECTION_PORT), str(seconds))
    return {Measure(PART, f"connections, {where}", "1/s", "more"): float(said)}


def tests(where: str) -> list[Test]:
    """Return all that is measured between two places."""
    return [
        partial(tcp, where, 1),
        partial(tcp, where, 8),
        partial(udp, where, 64),
        partial(latency, where, "TCP"),
        partial(latency, where, "UDP"),
        partial(connections, where),
    ]


def run(figures: Figures, lab: Lab, *, quick: bool) -> None:
    """Measure every route in turn, round by round; the order turns too."""
    rounds, seconds = (1, 1) if quick else (7, 2)
    ensure_tools()
    with ExitStack() as stack:
        between = stack.enter_context(routes(lab))
        for number in range(rounds):
            for where, subjects in between.items():
                for test in tests(where):
                    for subject in _turned(list(subjects), number):
                        for measure, value in test(subjects[subject], seconds).items():
                            figures.add(measure, subject, value)


@contextmanager
def routes(lab: Lab) -> Iterator[dict[str, dict[str, Route]]]:
    """Make containers and their servers; give the routes by place and subject."""
    h1, h2 = lab.hosts[:2]
    with playground(lab) as ground, ExitStack() as stack:
        made: dict[str, dict[str, Route]] = {"two hosts": {}, "one host": {}}
        for subject in (OURS, BUILT_IN):
            network = ground.network(**({"driver": BUILT_IN} if subject == BUILT_IN else {}))
            client, near, far = (Side.of(ground.run(host, network)) for host in (h1, h1, h2))
            addresses = [c.address(network) for c in ground.containers[-2:]]
            made["one host"][subject] = Route(client, near, addresses[0])
            made["two hosts"][subject] = Route(client, far, addresses[1])
        made["two hosts"][UNDERLAY] = Route(Side(h1), Side(h2), h2.address)
        for subjects in made.values():
            for route in subjects.values():
                stack.enter_context(_servers(route))
        yield made


@contextmanager
def _servers(route: Route) -> Iterator[None]:
    commands: list[Sequence[str]] = [
        ("iperf3", "-s"),
        ("sockperf", "server", "-p", str(_LATENCY_PORT)),
        ("sockperf", "server", "--tcp", "-p", str(_LATENCY_PORT)),
        (sys.executable, "-c", ACCEPT, str(_CONNECTION_PORT)),
    ]
    started = [route.server.popen(*command) for command in commands]
    try:
        ports = {5201, _LATENCY_PORT, _CONNECTION_PORT}
        assert wait_for(lambda: ports <= _listening(route.server), 10)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(10)


def _listening(side: Side) -> set[int]:
    return {int(port) for port in re.findall(r":(\d+) ", side.run("ss", "-Hltn"))}


def _iperf(route: Route, seconds: int, *options: str) -> tuple[dict[str, Any], float]:
    before = busy()
    said = route.client.run("iperf3", "-J", "-c", route.address, "-t", str(seconds), *options)
    return json.loads(said)["end"], busy() - before


def _turned(subjects: list[str], by: int) -> list[str]:
    by %= len(subjects)
    return subjects[by:] + subjects[:by]


def ensure_tools() -> None:
    """Install what measures, where it is missing."""
    missing = [tool for tool in ("iperf3", "sockperf") if shutil.which(tool) is None]
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    alone(run)
