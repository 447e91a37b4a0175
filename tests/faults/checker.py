"""The invariants: what must be true of a lab whenever nothing is under way.

`problems` is pure and judges Facts, so that test_checker.py can show that every rule bites; `reachability`
sends packets.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.faults.facts import FLOOD, Attached, Facts, HostFacts, Space, read
from tests.lab import CommandError, Host, Lab, wait_for

GRACE = 30.0 + 15.0 + 10.0
"""Seconds for which rows of a host that vanished may stay: grace, lease, and the look for either."""

MOST_PAIRS = 300
"""The kernel keeps 1,024 neighbours at most (gc_thresh3), those of all namespaces together: of a crowd only
some containers are asked whom they reach."""
FORGOTTEN = 60.0 + 30.0 + 5.0
"""Seconds for which the disk may hold the record of what ended while nobody could tell the plugin: the
time in which its engine may yet speak of it, and an audit. It does nothing meanwhile."""

LONG = 4.0
"""Seconds after which it is told what was wrong, even if it is right in time."""

RESTARTS = 4
"""How many times that time may begin anew, because faults ended the plugin's process meanwhile."""

PING_ALL = """
import json, os, select, socket, struct, sys, time
targets, seconds = set(sys.argv[2:]), float(sys.argv[1])
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
def packet(number):
    head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xffff, number)
    total = sum(struct.unpack("!4H", head))
    total = (total >> 16) + (total & 0xffff)
    return struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xffff, os.getpid() & 0xffff, number)
end, number = time.monotonic() + seconds, 0
while targets and time.monotonic() < end:
    for target in targets:
        try:
            s.sendto(packet(number), (target, 0))
        except OSError:
            pass
    number += 1
    pause = time.monotonic() + 0.25
    while targets and select.select([s], [], [], max(0.0, pause - time.monotonic()))[0]:
        data, (source, _) = s.recvfrom(2000)
        if data[20] == 0:
            targets.discard(source)
print(json.dumps(sorted(targets)))
"""


@dataclass(slots=True)
class Expected:
    """What the checker has to know and cannot see."""

    foreign: Mapping[str, str] = field(default_factory=dict)
    """By host: what `foreign` said when nothing had happened yet."""
    vteps: dict[str, str] = field(default_factory=dict)
    """By host: the VTEP, where it is not the host's first address."""
    vanished: dict[str, float] = field(default_factory=dict)
    """VTEPs of hosts that vanished without a word, and when (time.monotonic)."""
    ended: dict[str, float] = field(default_factory=dict)
    """Endpoints and networks with a record on disk that the engine has not, and since when that was seen."""


def problems(facts: Facts, expected: Expected, now: float) -> list[str]:
    """Everything that is not as it must be, in words; empty when all is well."""
    graced = {vtep for vtep, at in expected.vanished.items() if now - at < GRACE}
    found: list[str] = []
    for host in facts.hosts:
        found += _host_problems(host, facts, graced, expected, now)
    return found + list(_store_problems(facts, bool(graced)))


def _host_problems(
    host: HostFacts, facts: Facts, graced: set[str], expected: Expected, now: float
) -> Iterator[str]:
    local = {a.network for a in host.attached}
    for network in sorted(local):
        space = host.spaces.get(network[:12])
        if space is None:
            yield f"{host.name}: no namespace for network {network[:12]}, which has containers here"
            continue
        for text in _space_problems(host, network, space, facts, graced):
            yield f"{host.name}, network {network[:12]}: {text}"
    for name in sorted(set(host.spaces) - {network[:12] for network in local}):
        yield f"{host.name}: namespace of network {name}, which has no container here"
    for device in sorted(host.devices):
        yield f"{host.name}: device {device} lies about in the host's namespace"
    yield from _state_problems(host, expected, now)
    if host.name in expected.foreign and host.foreign != expected.foreign[host.name]:
        before = expected.foreign[host.name]
        yield f"{host.name}: foreign objects were touched: {before!r} are {host.foreign!r}"


def _space_problems(
    host: HostFacts, network: str, space: Space, facts: Facts, graced: set[str]
) -> Iterator[str]:
    others = [(h, a) for h in facts.hosts if h is not host for a in h.attached if a.network == network]
    fdb = {(a.mac, h.vtep) for h, a in others} | {(FLOOD, h.vtep) for h, _ in others}
    near = {(a.address, a.mac) for _, a in others}
    for row in sorted(fdb - space.fdb):
        yield f"FDB row {row} is missing"
    for row in sorted(space.fdb - fdb):
        if row[1] not in graced:
            yield f"FDB row {row} is stale"
    for row in sorted(near - space.neighbours):
        yield f"neighbour {row} is missing"
    excused = {mac for mac, vtep in space.fdb if vtep in graced}
    for row in sorted(space.neighbours - near):
        if row[1] not in excused:
            yield f"neighbour {row} is stale"
    ports = {f"port{a.endpoint[:11]}" for a in host.attached if a.network == network}
    for port in sorted(ports - space.ports):
        yield f"{port} of a running container is missing"
    for port in sorted(space.ports - ports):
        yield f"{port} belongs to no running container"
    for device in sorted(space.down):
        yield f"device {device} is down or on no bridge"


def _state_problems(host: HostFacts, expected: Expected, now: float) -> Iterator[str]:
    """What the plugin has on disk against what its engine has."""
    live = {a.endpoint: a.name for a in host.attached}
    for endpoint in sorted(live.keys() - _records(host, "endpoints")):
        yield f"{host.name}: {live[endpoint]} has no record on disk"
    for record in sorted(ended(host)):
        if now - expected.ended.get(record, -math.inf) > RESTARTS * FORGOTTEN:
            yield f"{host.name}: record of {record[:12]} is left over"


def ended(host: HostFacts) -> set[str]:
    """Endpoints with a record on disk and no running container, and networks that the engine has not."""
    endpoints = _records(host, "endpoints") - {a.endpoint for a in host.attached}
    return endpoints | (_records(host, "networks") - host.networks)


def _records(host: HostFacts, kind: str) -> set[str]:
    return {record["id"] for record in host.state.get(kind, ())}


def _store_problems(facts: Facts, someone_vanished: bool) -> Iterator[str]:
    if facts.store is None:
        yield "the store does not answer"
        return
    nodes = {h.state["host"]["id"]: h for h in facts.hosts if h.state}
    told = {k.rpartition("/")[2]: v for k, v in facts.store.items() if "/nodes/" in k}
    for node in sorted(nodes.keys() - told.keys()):
        yield f"store: no record of host {nodes[node].name}"
    for node in sorted(told.keys() & nodes.keys()):
        if told[node]["vtep"] != nodes[node].vtep:
            yield f"store: host {nodes[node].name} has VTEP {told[node]['vtep']}, not {nodes[node].vtep}"
    live = {f"{a.network}/{a.address}": (a, h) for h in facts.hosts for a in h.attached}
    records = {k.partition("/endpoints/")[2]: v for k, v in facts.store.items() if "/endpoints/" in k}
    for key in sorted(live.keys() - records.keys()):
        yield f"store: no record of {live[key][0].name} {live[key][0].address}"
    for key in sorted(records.keys() - live.keys()):
        # Records of a host that vanished stay for ten minutes; they do no harm without their node.
        if records[key]["node"] in nodes or (not someone_vanished and records[key]["node"] in told):
            yield f"store: record {key} is left over"
    for key in sorted(records.keys() & live.keys()):
        yield from _record_problems(records[key], *live[key])


def _record_problems(record: Mapping[str, str], live: Attached, host: HostFacts) -> Iterator[str]:
    right = {"mac": live.mac, "node": host.state["host"]["id"], "endpoint": live.endpoint}
    if {name: record.get(name) for name in right} != right:  # when it was claimed is nobody's business
        yield f"store: record of {live.name} {live.address} on {host.name} is {dict(record)}, not {right}"


def unreachable(lab: Lab, facts: Facts, seconds: float = 1.0) -> list[str]:
    """The pairs of running containers of a network that do not reach each other within *seconds*.

    Of more than 17 containers, some are asked.
    """
    hosts = {host.name: host for host in lab.hosts}
    everyone = [(hosts[h.name], a) for h in facts.hosts for a in h.attached]
    asked = everyone[:: math.ceil(len(everyone) ** 2 / MOST_PAIRS) or 1]

    def ask(one: tuple[Host, Attached]) -> list[str]:
        host, source = one
        targets = [a.address for _, a in everyone if a.network == source.network and a is not source]
        if not targets:
            return []
        argv = [
            "nsenter",
            "-t",
            str(source.pid),
            "-n",
            sys.executable,
            "-S",
            "-c",
            PING_ALL,
            str(seconds),
            *targets,
        ]
        try:
            silent = json.loads(host.run(argv, timeout=30).stdout)
        except CommandError as error:
            return [f"{source.name} on {host.name} cannot be asked: {error}"]
        return [f"{source.name} {source.address} on {host.name} does not reach {target}" for target in silent]

    with ThreadPoolExecutor(4) as pool:
        return [text for texts in pool.map(ask, asked) for text in texts]


class Checker:
    """Looks at a lab until it is right, or for as long as it may take."""

    def __init__(self, lab: Lab, expected: Expected) -> None:
        self.lab = lab
        self.expected = expected

    def look(self) -> list[str]:
        """What is wrong at present."""
        try:
            facts = read(self.lab, self.expected.vteps)
        except (OSError, CommandError, ValueError) as error:
            return [f"cannot look: {type(error).__name__}: {error}"]
        known, now = self.expected.ended, time.monotonic()
        self.expected.ended = {e: known.get(e, now) for host in facts.hosts for e in ended(host)}
        return problems(facts, self.expected, now)

    def right_within(self, seconds: float) -> float:
        """Wait until all is right and everybody reaches everybody; return how long that took.

        What was wrong until the last moment is told if that was long.
        """
        began, seen, wrong = time.monotonic(), [""], [""]

        def right() -> bool:
            looked = time.monotonic()
            seen[:] = self.look()
            if not seen:
                seen[:] = unreachable(self.lab, read(self.lab, self.expected.vteps))
            wrong[:] = seen or wrong
            if time.monotonic() - looked > LONG:
                wrong.append(f"(looking took {time.monotonic() - looked:.1f} s)")
            return not seen

        ok = wait_for(right, seconds, every=0.1)
        assert ok, f"not right after {seconds:g} s:\n" + "\n".join(seen)
        took = time.monotonic() - began
        if took > LONG:
            print(f"until {time.strftime('%X')}, for {took:.1f} s:", *wrong, sep="\n    ", flush=True)
        return took
