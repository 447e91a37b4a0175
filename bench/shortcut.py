"""What the shortcut past the bridge saves: ways between two hosts of namespaces, side by side.

    .venv/bin/python -m bench.shortcut [--rounds 7]

Needs root and sockperf. Docker's overlay is there in its shape, device by device; ours as the driver makes
it, with shortcuts and, as "bridge", without. They take turns in every round, and a ratio compares what one
round has measured. Round trips have both ends on one CPU: what it takes to wake another one drowns all else.
CPU seconds are the whole machine's, softirq included.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from bench.datapath import busy
from bench.figures import BUILT_IN, OURS, UNDERLAY, Figures, Measure
from bench.report import table
from bench.scene import apart
from driver.kernel import netns
from driver.wish.values import mac_of
from tests.kernel.hosts import Host, Space, eventually, os_unshare
from tests.kernel.machine import pair
from tests.kernel.test_datapath import ping

BRIDGE = "bridge"
"""Ours without shortcuts."""
WAYS = (UNDERLAY, BUILT_IN, BRIDGE, OURS)
SIZES = (64, 512, 1400)
MTU = 1450
_CLONE_NEWNET = 0x40000000
_PORTS = {0: 5000, 1: 5001}
"""By the CPU that the server is on; clients are on CPU 0."""


@dataclass(frozen=True)
class End:
    """Where programs run, on one of two hosts."""

    space: Space
    address: str

    def sockperf(self, cpu: int, *arguments: str) -> subprocess.Popen[str]:
        """Start it here."""
        enter = ["nsenter", f"--net={self.space.path}", "taskset", "-c", str(cpu)]
        return subprocess.Popen([*enter, "sockperf", *arguments], stdout=subprocess.PIPE, text=True)

    def send(self, mode: str, other: End, cpu: int, size: int, *more: str) -> subprocess.Popen[str]:
        """Send to *other*'s server on *cpu*: as sockperf does, nothing for two seconds, and then for one."""
        there = ("-i", other.address, "-p", str(_PORTS[cpu]), "-m", str(size), "-t", "1")
        return self.sockperf(0, mode, *there, *more)


Route = tuple[End, End]


def run(figures: Figures, rounds: int) -> None:
    """Measure all ways, each round beginning with another one."""
    with ExitStack() as stack:
        routes = ground(stack)
        for turn in range(rounds):
            order = [*WAYS[turn % len(WAYS) :], *WAYS[: turn % len(WAYS)]]
            for size in SIZES:
                name = f"UDP, {size} bytes"
                took = trips(routes, order, size)
                streams = {way: stream(routes[way], size) for way in order if way != UNDERLAY}
                added = {way: took[way] - took[UNDERLAY] for way in streams}
                rates = {way: rate for way, (rate, _) in streams.items()}
                costs = {way: cost for way, (_, cost) in streams.items()}
                add(figures, f"{name}: round trip", "µs", took)
                add(figures, f"{name}: of that added to the hosts'", "µs", added)
                add(figures, f"{name}: a second", "packets", rates, "more")
                add(figures, f"{name}: CPU per million", "s", costs)


def add(
    figures: Figures,
    name: str,
    unit: str,
    found: Mapping[str, float],
    better: Literal["more", "less"] = "less",
) -> None:
    """Add a sample of each way; ours without shortcuts is also compared with Docker's by itself."""
    for way, value in found.items():
        figures.add(Measure("with shortcuts", name, unit, better), way, value)
    alone = Measure("without", name, unit, better)
    figures.add(alone, OURS, found[BRIDGE])
    figures.add(alone, BUILT_IN, found[BUILT_IN])


def trips(routes: Mapping[str, Route], order: Sequence[str], size: int) -> dict[str, float]:
    """Return the medians of round trips, in microseconds."""
    started = {}
    for way in order:
        source, target = routes[way]
        started[way] = source.send("ping-pong", target, 0, size, "--full-rtt")
        time.sleep(1.25)  # while one waits, the one before sends
    said = {way: client.communicate(timeout=30)[0] for way, client in started.items()}
    return {way: float(re.findall(r"percentile 50\.000 += +([\d.]+)", said[way])[0]) for way in order}


def stream(route: Route, size: int) -> tuple[float, float]:
    """Return how many datagrams arrive in a second, and the CPU seconds of a million."""
    source, target = route
    before, spent = _arrived(target.space), busy()
    source.send("throughput", target, 1, size).communicate(timeout=30)
    arrived, spent = _arrived(target.space) - before, busy() - spent
    return arrived, spent / (arrived / 1e6)


def ground(stack: ExitStack) -> dict[str, Route]:
    """Make two hosts with a container each for every way; the last two are those of the underlay too."""
    routes: dict[str, Route] = {}
    for way, make in MAKERS.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts = [Host(folder / name) for name in ("a", "b")]
        for host in hosts:
            stack.callback(host.close)
        spaces = make(hosts)
        routes[way] = (End(spaces[0], "10.9.0.11"), End(spaces[1], "10.9.0.12"))
        routes[UNDERLAY] = (End(hosts[0], "192.0.2.1"), End(hosts[1], "192.0.2.2"))
    for _, target in routes.values():
        for cpu, port in _PORTS.items():
            server = target.sockperf(cpu, "server", "-p", str(port))
            stack.callback(server.wait)
            stack.callback(server.kill)
        assert eventually(lambda t=target: t.space.run("ss -lunH").count(":500") == len(_PORTS))  # type: ignore[misc]
    return routes


def _ours(hosts: list[Host], *, shortcuts: bool = True) -> list[Space]:
    """Let the whole driver make it, and end: nothing but packets uses the CPUs then."""
    if not shortcuts:
        for host in hosts:
            host.kernel.has_shortcuts = lambda: False  # type: ignore[method-assign]
    machines = pair(hosts)
    for machine in machines:
        machine.create("bench", "10.9.0.0/24", 7000)
    spaces = [machine.attach("bench", f"10.9.0.1{machine.vtep.packed[3]}") for machine in machines]
    assert ping(spaces[0], "10.9.0.12")
    for machine in machines:
        machine.reconciler.stop()
        machine.sandboxes.stop()
        machine.peering.stop(leave=False)
    return spaces


def _built_in(hosts: list[Host]) -> list[Space]:
    """Make what the engine makes of an overlay network: its devices, flags and settings."""
    hosts[0].run(f"ip link add u0 type veth peer name u0 netns {hosts[1].path}")
    containers = []
    for host, (mine, other) in zip(hosts, ((1, 2), (2, 1)), strict=True):
        host.run(f"ip address add 192.0.2.{mine}/24 dev u0; ip link set u0 up")
        inner, container = _plain(), _plain()
        macs = [mac_of(ip_address(f"10.9.0.1{number}")) for number in (mine, other)]
        host.run(
            f"ip link add vx0 mtu {MTU} type vxlan id 7000 dstport 4789 proxy l2miss l3miss;"
            f"ip link set vx0 netns {inner.path};"
            f"ip link add port mtu {MTU} type veth peer name eth0 address {macs[0]} mtu {MTU};"
            f"ip link set port netns {inner.path}; ip link set eth0 netns {container.path}"
        )
        inner.run(
            "ip link add br0 type bridge vlan_default_pvid 0; ip link set br0 up;"
            "ip link set vx0 master br0 up; ip link set port master br0 up;"
            f"ip neigh add 10.9.0.1{other} lladdr {macs[1]} dev vx0 nud permanent;"
            f"bridge fdb add {macs[1]} dev vx0 dst 192.0.2.{other} self permanent"
        )
        container.run(f"ip link set lo up; ip address add 10.9.0.1{mine}/24 dev eth0; ip link set eth0 up")
        containers.append(container)
    return containers


MAKERS: Mapping[str, Callable[[list[Host]], list[Space]]] = {
    OURS: _ours,
    BRIDGE: partial(_ours, shortcuts=False),
    BUILT_IN: _built_in,
}


def _plain() -> Space:
    """Make a namespace with nobody's settings, as the engine makes them; it ends with this process."""

    def make() -> Space:
        os_unshare(_CLONE_NEWNET)
        return Space(netns.current())

    return netns._apart(make)


def _arrived(space: Space) -> int:
    """Return how many datagrams have come to a namespace's sockets, read or not for want of room."""
    text = space.run("cat /proc/thread-self/net/snmp")
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    found = dict(zip(names, values, strict=True))
    return int(found["InDatagrams"]) + int(found["RcvbufErrors"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    figures = Figures()
    if arguments.json:  # in namespaces of our own, see apart
        run(figures, arguments.rounds)
        print(json.dumps(figures.dump()))
    else:
        apart(figures, "bench.shortcut", "--rounds", str(arguments.rounds))
        print(table(figures.all()))


if __name__ == "__main__":
    main()
