"""Two hosts, an underlay between them, containers on both: what arrives, and what the wire carries."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_interface

import pytest

from driver.kernel import netns
from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Row,
    Shortcut,
    Vxlan,
)
from driver.kernel.objects import KernelObject, index
from driver.reconcile.plan import diff
from driver.wish.values import Address, Mac, Vni, bridge_mac, mac_of
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Stream, datagrams

pytestmark = pytest.mark.kernel

NS = "pyoverlay-net1"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
MTU, LOWER_MTU = 1430, 1330
"""The containers': what fits an underlay of 1500, or of 1400, over either family."""


@dataclass
class Machine:
    """A host with its outer address and one container per segment."""

    host: Host
    number: int
    vtep: Address
    containers: list[Space] = field(default_factory=list)

    def address(self, segment: int) -> str:
        return f"10.1.{segment}.{10 + self.number}"

    def address6(self, segment: int) -> str:
        return f"fd00:1:{segment}::{10 + self.number}"


class Wire:
    """All frames that machine B's underlay device sees."""

    def __init__(self, host: Host) -> None:
        self._socket = host.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.bind(("u0", 0))
        self._socket.setblocking(False)

    def vxlan(self) -> list[tuple[bytes, bytes, bytes]]:
        """(UDP header, VXLAN header, inner frame) of what was sent since the last question."""
        found: list[tuple[bytes, bytes, bytes]] = []
        while True:
            try:
                frame = self._socket.recv(65536)
            except BlockingIOError:
                return found
            kind = int.from_bytes(frame[12:14], "big")
            if kind in (IPV4, IPV6):
                datagram = frame[14 + (20 if kind == IPV4 else 40) :]
                protocol = frame[23] if kind == IPV4 else frame[20]
                if protocol == socket.IPPROTO_UDP and datagram[2:4] == struct.pack("!H", 4789):
                    found.append((datagram[:8], datagram[8:16], datagram[16:]))

    def kinds(self) -> set[int]:
        """EtherTypes inside the tunnel."""
        return {int.from_bytes(inner[12:14], "big") for _, _, inner in self.vxlan()}

    def close(self) -> None:
        self._socket.close()


@dataclass
class Lab:
    machines: list[Machine]
    wire: Wire


@pytest.fixture(params=["v4 underlay", "v6 underlay"])
def lab(request: pytest.FixtureRequest, hosts: Callable[[], Host]) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield build(hosts, stack, six=request.param == "v6 underlay")


@pytest.fixture
def lab4(hosts: Callable[[], Host]) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield build(hosts, stack, six=False)


def build(hosts: Callable[[], Host], stack: ExitStack, six: bool) -> Lab:
    machines = [
        Machine(hosts(), n, ip_address(f"2001:db8::{n + 1}" if six else f"192.0.2.{n + 1}")) for n in range(2)
    ]
    a, b = machines
    a.host.run(f"ip link add u0 type veth peer name u0 netns {b.host.path}")
    for machine in machines:
        length = 64 if six else 24
        nodad = "nodad" if six else ""
        machine.host.run(f"ip address add {machine.vtep}/{length} dev u0 {nodad} && ip link set u0 up")
    for machine, other in ((a, b), (b, a)):
        assert machine.host.kernel.apply(diff(index(wish(machine, other)), {})) == {}
        machine.containers = [container(machine, segment) for segment in range(2)]
        for space in machine.containers:
            stack.callback(space.close)
    wire = Wire(b.host)
    stack.callback(wire.close)
    for machine in machines:
        ports = machine.host.overlay(NS)
        assert eventually(
            lambda p=ports: all(  # type: ignore[misc]
                link["operstate"] == "UP" for link in p.json("ip -j link show type veth")
            )
        )
        ports.close()
    return Lab(machines, wire)


def wish(machine: Machine, other: Machine, mtu: int = MTU) -> list[KernelObject]:
    found: list[KernelObject] = [Namespace(NS)]
    for segment in range(2):
        bridge, vxlan = f"br{segment}", f"vx{segment}"
        peer_mac = mac_of(ip_address(other.address(segment)))
        found += [
            Bridge(NS, bridge, bridge_mac(f"{machine.number} {segment}"), mtu, "pyoverlay net1"),
            BridgeAddress(NS, bridge, ip_interface(f"10.1.{segment}.1/24")),
            BridgeAddress(NS, bridge, ip_interface(f"fd00:1:{segment}::1/64")),
            Vxlan(NS, vxlan, Vni(7000 + segment), 4789, machine.vtep, bridge, "pyoverlay net1"),
            Port(NS, f"p{segment}", bridge, "pyoverlay c", f"c{segment}", own_mac(machine, segment), mtu),
            FdbEntry(NS, vxlan, FLOOD_MAC, other.vtep),
            FdbEntry(NS, vxlan, peer_mac, other.vtep),
            Neighbour(NS, vxlan, ip_address(other.address(segment)), peer_mac),
            Neighbour(NS, vxlan, ip_address(other.address6(segment)), peer_mac),
        ]
    return found


def own_mac(machine: Machine, segment: int) -> Mac:
    return mac_of(ip_address(machine.address(segment)))


def container(machine: Machine, segment: int) -> Space:
    """Do what the engine does with the container end."""
    space = Space(netns.create())
    machine.host.run(f"ip link set c{segment} netns {space.path}")
    space.run(
        f"ip link set c{segment} name eth0; ip address add {machine.address(segment)}/24 dev eth0;"
        f"ip address add {machine.address6(segment)}/64 dev eth0 nodad; ip link set eth0 up;"
        f"ip route add default via 10.1.{segment}.1; ip -6 route add default via fd00:1:{segment}::1"
    )
    return space


def ping(source: Space, target: str, size: int = 56) -> bool:
    """ICMP echo, and its answer."""
    six = ":" in target
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    identity = os.urandom(2)
    body = identity + b"\0\1" + os.urandom(size)
    head = struct.pack("!BBH", 128 if six else 8, 0, 0)
    if not six:  # the kernel fills in ICMPv6's
        head = struct.pack("!BBH", 8, 0, _checksum(head + body))
    deadline = time.monotonic() + 5
    with source.socket(family, socket.SOCK_RAW, protocol) as opened:
        opened.sendto(head + body, (target, 0))
        while time.monotonic() < deadline:
            answer = opened.recv(65536)
            answer = answer if six else answer[20:]
            if answer[0] == (129 if six else 0) and answer[4:6] == identity:
                return answer[4:] == body
    return False


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def test_containers_reach_each_other(lab: Lab) -> None:
    a, b = lab.machines
    for segment in range(2):
        assert ping(a.containers[segment], b.address(segment))
        assert ping(b.containers[segment], a.address(segment))
        assert ping(a.containers[segment], b.address6(segment))


def test_full_size_packets_pass(lab: Lab) -> None:
    a, b = lab.machines
    assert ping(a.containers[0], b.address(0), size=MTU - 20 - 8)
    assert ping(a.containers[0], b.address6(0), size=MTU - 40 - 8)


@pytest.mark.parametrize("segments", [65535, 1])
def test_the_underlays_mtu_is_lowered_under_streams_and_full_sized_datagrams(lab: Lab, segments: int) -> None:
    """With many *segments* as one packet until it leaves, which no bridge finds too big, or one by one."""
    a, b = lab.machines
    here, (near, far) = a.containers[0], b.containers
    here.run(f"ip link set eth0 gso_max_segs {segments}")
    ways = [(near, b.address(0)), (near, b.address6(0)), (far, b.address(1)), (far, b.address6(1))]
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(here, space, address)) for space, address in ways]
        assert [stream.flows() for stream in streams] == [True] * 4
        for machine, other in ((a, b), (b, a)):
            machine.host.run("ip link set u0 mtu 1400")
            kernel = machine.host.kernel
            assert kernel.apply(diff(index(wish(machine, other, LOWER_MTU)), kernel.read_place(NS))) == {}
        assert [stream.flows() for stream in streams] == [True] * 4
    # The first one is answered with what fits; the way back has not learned that from the streams.
    for source in (near, far):
        assert datagrams(source, here, a.address(0), MTU - 28)[1:] == [True] * 4
        assert datagrams(source, here, a.address6(0), MTU - 48)[1:] == [True] * 4


def test_datagrams_that_may_be_fragmented_are_by_ipv4_alone(lab: Lab) -> None:
    """Linux does not fragment what a tunnel sends over IPv6 (ADR 7)."""
    a, b = lab.machines
    for machine in lab.machines:
        machine.host.run("ip link set u0 mtu 1400")
    arrived = datagrams(a.containers[0], b.containers[0], b.address(0), MTU - 28, df=False)
    assert arrived == [a.vtep.version == 4] * 5


def test_subnets_are_routed_across_hosts(lab: Lab) -> None:
    a, b = lab.machines
    assert ping(a.containers[0], b.address(1))
    assert ping(b.containers[1], a.address(0))
    assert ping(a.containers[0], b.address6(1))
    assert ping(a.containers[0], a.address(1))


def test_gateways_answer(lab4: Lab) -> None:
    for machine in lab4.machines:
        for segment, space in enumerate(machine.containers):
            assert ping(space, f"10.1.{segment}.1")
            assert ping(space, f"fd00:1:{segment}::1")
    assert not [inner for _, _, inner in lab4.wire.vxlan() if inner[12:14] == b"\x08\x00"]


def test_arp_and_neighbour_discovery_are_answered_at_home(lab: Lab) -> None:
    a, b = lab.machines
    lab.wire.vxlan()
    assert ping(a.containers[0], b.address(0))
    assert ping(a.containers[0], b.address6(0))
    frames = [inner for _, _, inner in lab.wire.vxlan()]
    assert len(frames) >= 4
    assert ARP not in {int.from_bytes(inner[12:14], "big") for inner in frames}
    solicitations = [f for f in frames if f[12:14] == b"\x86\xdd" and f[20] == 58 and f[54] in (135, 136)]
    assert not solicitations
    (neighbour,) = a.containers[0].json(f"ip -j neigh show {b.address(0)}")
    assert neighbour["lladdr"] == own_mac(b, 0)


def test_an_unknown_address_costs_the_other_hosts_nothing(lab4: Lab) -> None:
    a, _ = lab4.machines
    lab4.wire.vxlan()
    with a.containers[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", ("10.1.0.200", 9))
    time.sleep(0.1)
    assert ARP not in lab4.wire.kinds()


def test_the_header_is_rfc_7348s(lab: Lab) -> None:
    a, b = lab.machines
    lab.wire.vxlan()
    assert ping(a.containers[1], b.address(1))
    sent = [f for f in lab.wire.vxlan() if f[2][:6] == bytes.fromhex(own_mac(b, 1).replace(":", ""))]
    udp, vxlan, _ = sent[0]
    source, target, _, checksum = struct.unpack("!HHHH", udp)
    assert 49152 <= source <= 65535
    assert target == 4789
    assert (checksum != 0) == isinstance(a.vtep, IPv6Address)
    assert vxlan == bytes([0x08, 0, 0, 0]) + (7001).to_bytes(3, "big") + b"\0"


@pytest.mark.parametrize("target", ["10.1.0.255", "255.255.255.255", "239.1.2.3"])
def test_broadcast_and_multicast_reach_the_other_host(lab: Lab, target: str) -> None:
    a, b = lab.machines
    with (
        a.containers[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        b.containers[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("0.0.0.0", 5555))
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton(b.address(0))
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        own = socket.inet_aton(a.address(0))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
        sender.sendto(b"to all", (target, 5555))
        assert receiver.recvfrom(100)[0] == b"to all"


def test_multicast_over_ipv6_reaches_the_other_host(lab4: Lab) -> None:
    a, b = lab4.machines
    with (
        a.containers[0].socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        b.containers[0].socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
    ):
        device = [s.inside(lambda: socket.if_nametoindex("eth0")) for s in (a.containers[0], b.containers[0])]
        receiver.bind(("::", 5555))
        group = socket.inet_pton(socket.AF_INET6, "ff02::1234") + struct.pack("@I", device[1])
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        sender.sendto(b"to all", ("ff02::1234", 5555, 0, device[0]))
        assert receiver.recvfrom(100)[0] == b"to all"


def test_traffic_goes_on_while_the_rows_are_set_again(lab4: Lab) -> None:
    a, b = lab4.machines
    for _ in range(20):
        have = a.host.kernel.read_place(NS)
        devices = {key: obj for key, obj in have.items() if not isinstance(obj, Row | Shortcut)}
        assert a.host.kernel.apply(diff(dict(have), devices)) == {}
        assert ping(a.containers[0], b.address(0))
