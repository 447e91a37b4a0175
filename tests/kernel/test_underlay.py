"""Hosts whose announced address is on none of their devices: a router translates it (1:1 NAT)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from driver.cluster.memory import MemoryStore
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, Meter

pytestmark = pytest.mark.kernel

NETWORK = "n1"
PRIVATE = {4: "10.77.{}.1", 6: "fd77:0:0:{}::1"}
PUBLIC = {4: "192.0.2.{}", 6: "2001:db8::{}"}


class Translated:
    """Two machines behind one router, each known by an address that only the router knows."""

    def __init__(self, hosts: list[Host], router: Host, version: int) -> None:
        self.version = version
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for number, host in enumerate(hosts, 1):
            self._connect(host, router, number)
        cluster = MemoryStore()
        self.machines = [Machine(host, number, cluster) for number, host in enumerate(hosts, 1)]
        for number, machine in enumerate(self.machines, 1):
            machine.overlay.node_discovered(ip_address(PUBLIC[version].format(number)), is_self=True)
            machine.start()

    def _connect(self, host: Host, router: Host, number: int) -> None:
        own, known = PRIVATE[self.version].format(number), PUBLIC[self.version].format(number)
        length, gateway = (24, own[:-1] + "254") if self.version == 4 else (64, own[:-1] + "fe")
        router.run(f"ip link add r{number} type veth peer name u0 netns {host.path}")
        router.run(f"ip address add {gateway}/{length} dev r{number} nodad; ip link set r{number} up")
        host.run(f"ip address add {own}/{length} dev u0 nodad; ip link set u0 up")
        host.run(f"ip route add default via {gateway}")
        family = "ip" if self.version == 4 else "ip6"
        # Without a memory of flows, as an elastic IP: what a host is given or loses does not matter to it.
        rules = f"udp dport 4789 {family} saddr {own} {family} saddr set {known} notrack;"
        rules += f"udp dport 4789 {family} daddr {known} {family} daddr set {own} notrack;"
        chain = f"chain both {{ type filter hook prerouting priority -300; {rules} }}"
        router.run(f"nft 'table {family} nat{number} {{ {chain}; }}'")

    def local(self, machine: Machine) -> str:
        """The outer source address of the network's tunnel, as ip(8) shows it."""
        shown = machine.host.overlay(f"pyoverlay-{NETWORK}").run("ip -d link show type vxlan")
        found = re.search(r" local (\S+)", shown)
        return found[1] if found else ""


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def translated(hosts: Callable[[], Host], request: pytest.FixtureRequest) -> Iterator[Translated]:
    made = Translated([hosts(), hosts()], hosts(), request.param)
    try:
        yield made
    finally:
        for machine in made.machines:
            machine.stop()


def test_an_announced_address_on_no_device_works(
    translated: Translated, caplog: pytest.LogCaptureFixture
) -> None:
    for machine in translated.machines:
        machine.create(NETWORK, "10.1.0.0/24", 7001)
    one, two = (
        machine.attach(NETWORK, f"10.1.0.1{number}") for number, machine in enumerate(translated.machines, 1)
    )
    assert eventually(lambda: _loses_nothing(one, "10.1.0.12"))
    assert eventually(lambda: _loses_nothing(two, "10.1.0.11"))
    assert [translated.local(machine) for machine in translated.machines] == ["", ""]
    said = [record.getMessage() for record in caplog.get_records("setup") + caplog.get_records("call")]
    assert sum("is on no device of this host: tunnels leave by u0" in line for line in said) == 2


def test_an_address_given_to_the_host_or_taken_from_it_is_followed_in_place(
    translated: Translated,
) -> None:
    a, _ = translated.machines
    for machine in translated.machines:
        machine.create(NETWORK, "10.1.0.0/24", 7001)
    one, _two = (
        machine.attach(NETWORK, f"10.1.0.1{number}") for number, machine in enumerate(translated.machines, 1)
    )
    public = PUBLIC[translated.version].format(1)
    length = 32 if translated.version == 4 else 128
    index = _index(a)
    assert eventually(lambda: _loses_nothing(one, "10.1.0.12")), "the other host's rows are there"
    a.host.run(f"ip address add {public}/{length} dev u0 nodad")
    assert eventually(lambda: translated.local(a) == public)
    assert eventually(lambda: _loses_nothing(one, "10.1.0.12"))
    a.host.run(f"ip address del {public}/{length} dev u0")
    assert eventually(lambda: translated.local(a) == "")
    assert eventually(lambda: _loses_nothing(one, "10.1.0.12"))
    assert _index(a) == index


def _loses_nothing(source: Space, target: str) -> bool:
    with Meter(source, target, 0.02) as meter:
        time.sleep(0.1)
    return meter.lost == 0


def _index(machine: Machine) -> int:
    (tunnel,) = machine.host.overlay(f"pyoverlay-{NETWORK}").json("ip -j link show type vxlan")
    return int(tunnel["ifindex"])
