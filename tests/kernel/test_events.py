"""What the kernel tells of its own accord: every change by hand, and nothing that traffic does."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from driver.kernel import Kernel
from driver.kernel.kinds import FLOOD_MAC, FdbEntry, Neighbour, Port, Row
from driver.kernel.objects import Key
from driver.kernel.ops import Delete, Op, Set
from driver.reconcile.plan import diff
from driver.wish.model import Underlay
from driver.wish.values import HOST, Mac
from tests.fakes.kernel import FakeKernel
from tests.kernel.hosts import Host, Space
from tests.kernel.samples import NS, PEER_MAC, network
from tests.kernel.test_drift import CHANGES
from tests.worlds import converge

AT_ONCE = 0.0


@pytest.fixture
def wake() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kernel]:
    if request.param == "fake":
        yield FakeKernel()
        return
    host = Host(tmp_path / "netns")
    yield host.kernel
    host.close()


@pytest.fixture
def built(host: Host) -> Host:
    want = network()
    assert converge(host.kernel, want) == want
    return host


def test_what_apply_did_is_no_news_after_the_read_that_follows(kernel: Kernel, wake: int) -> None:
    want = network()
    for wish in (want, network(mtu=1400), network(vni=7), want):
        assert converge(kernel, wish) == wish
        assert kernel.await_news(AT_ONCE, wake) == set()


def test_what_apply_did_is_no_news_after_a_read_of_it(kernel: Kernel, wake: int) -> None:
    want = network()
    assert converge(kernel, want) == want
    vtep = ip_address("192.0.2.55")
    rows: list[Row] = [
        FdbEntry(NS, "vx0", PEER_MAC, vtep),
        FdbEntry(NS, "vx0", FLOOD_MAC, vtep),
        Neighbour(NS, "vx0", ip_address("10.1.0.9"), Mac("02:42:00:00:00:77")),
        Neighbour(NS, "vx0", ip_address("fd00:1::77"), PEER_MAC),
    ]
    steps: list[list[Op]] = [[Set(row) for row in rows], [Delete(row) for row in rows]]
    for ops in steps:
        assert kernel.apply(ops) == {}
        kernel.read_place(NS, rows)
        assert kernel.await_news(AT_ONCE, wake) == set()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("bridge fdb del 02:42:0a:01:00:09 dev vx0 self", True),
        ("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.66 self permanent", True),
        ("ip neigh del fd00:1::9 dev vx0", True),
        ("ip neigh del 10.1.0.9 dev vx0", False),
        ("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.55 self permanent", False),
        ("ip link set vx0 mtu 1300", False),
    ],
)
def test_a_read_of_some_rows_keeps_the_news_of_others(
    built: Host, wake: int, change: str, *, told: bool
) -> None:
    built.overlay(NS).run(change)
    rows: list[Row] = [
        Neighbour(NS, "vx0", ip_address("10.1.0.9"), PEER_MAC),
        FdbEntry(NS, "vx0", FLOOD_MAC, ip_address("192.0.2.55")),
    ]
    built.kernel.read_place(NS, rows)
    built.kernel.read_place(NS, rows)
    assert built.kernel.await_news(AT_ONCE, wake) == ({NS} if told else set())
    assert built.kernel.await_news(AT_ONCE, wake) == set()


def test_it_waits_as_long_as_told(kernel: Kernel, wake: int) -> None:
    start = time.monotonic()
    assert kernel.await_news(0.05, wake) == set()
    assert 0.04 < time.monotonic() - start < 1


def test_it_can_be_woken(kernel: Kernel, wake: int) -> None:
    os.eventfd_write(wake, 1)
    assert kernel.await_news(10, wake) == set()


def test_the_fake_one_tells_of_hands(wake: int) -> None:
    kernel = FakeKernel()
    want = network()
    kernel.apply(diff(want, {}))
    kernel.lose(Key(FdbEntry.kind, NS, "vx0", PEER_MAC))
    assert kernel.await_news(10, wake) == {NS}
    assert kernel.await_news(AT_ONCE, wake) == set()
    kernel.spoil(FdbEntry(NS, "vx0", PEER_MAC, ip_address("192.0.2.66")))
    kernel.read_place(NS)
    assert kernel.await_news(AT_ONCE, wake) == set(), "the read has seen it"
    kernel.move_underlay(None, Underlay("eth0", 1400))
    assert kernel.await_news(10, wake) == {HOST}


PORT_FLAGS = [
    "ip link set p0 type bridge_slave isolated on",
    "ip link set p0 type bridge_slave hairpin on",
    "ip link set p0 type bridge_slave learning off",
    "ip link set p0 type bridge_slave flood off",
    "ip link set p0 type bridge_slave mcast_flood off",
    "ip link set p0 type bridge_slave bcast_flood off",
    "ip link set p0 type bridge_slave neigh_suppress on",
    "ip link set p0 type bridge_slave proxy_arp on",
    "ip link set p0 type bridge_slave proxy_arp_wifi on",
    "ip link set vx0 type bridge_slave flood off",
    "bridge link set dev p0 isolated on",
    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.2 vni 5 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.9 port 5 self permanent",
]


@pytest.mark.kernel
@pytest.mark.parametrize("change", [*CHANGES, *PORT_FLAGS])
def test_a_change_by_hand_is_told_and_mended(built: Host, wake: int, change: str) -> None:
    built.overlay(NS).run(change)
    assert built.kernel.await_news(1, wake) == {NS}
    want = network()
    assert diff(want, built.kernel.read_place(NS)), "nobody noticed"
    assert converge(built.kernel, want) == want
    if built.kernel.await_news(AT_ONCE, wake):  # the kernel tells of carriers later than of devices, once
        assert built.kernel.read_place(NS) == want
    assert built.kernel.await_news(AT_ONCE, wake) == set()


@pytest.mark.kernel
@pytest.mark.parametrize(
    "removal",
    ["ip netns delete", "umount", "unshare --net mount --bind /proc/self/ns/net"],
)
def test_a_pin_changed_by_hand_is_told(built: Host, wake: int, removal: str) -> None:
    pin = built.directory / NS
    if removal == "ip netns delete":
        subprocess.run(["umount", "--lazy", str(pin)], check=True)
        pin.unlink()
    else:
        subprocess.run([*removal.split(), str(pin)], check=True)
    assert built.kernel.await_news(1, wake) == {NS}
    if not removal.startswith("unshare"):
        assert converge(built.kernel, network()) == network()
        assert built.kernel.await_news(AT_ONCE, wake) == set()


@pytest.mark.kernel
def test_what_others_do_is_no_news(built: Host, wake: int) -> None:
    space = built.overlay(NS)
    space.run(
        "ip link add dbg0 type bridge && ip link set dbg0 up && ip address add 10.5.0.1/24 dev dbg0;"
        "ip link add dbg1 type vxlan id 9 dstport 9999 remote 192.0.2.9 && ip link set dbg1 up;"
        "bridge fdb add 02:00:00:00:00:09 dev dbg1 dst 192.0.2.9 self permanent;"
        "ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:05 dev br0 nud permanent;"
        "ip link set br0 promisc on; ip link set br0 promisc off;"
        "ip link add dbg2 type veth peer name dbg3 && ip link set dbg2 master br0 up && ip link del dbg2"
    )
    built.run("ip link add stranger type bridge && ip link set stranger up && ip link del stranger")
    built.kernel.read_place(NS)  # new devices get forwarding told of all
    space.run("ip neigh del 10.1.0.77 dev br0; ip link set dbg1 mtu 1300; ip link del dbg0")
    assert built.kernel.await_news(0.2, wake) == set()


@pytest.mark.kernel
def test_a_containers_start_and_its_frames_are_no_news(built: Host, wake: int) -> None:
    from tests.kernel.test_datapath import ping

    space = Space(built.inside(_new_space))
    built.run(f"ip link set c0 netns {space.path}")
    space.run("ip link set c0 name eth0; ip address add 10.1.0.2/24 dev eth0; ip link set eth0 up")
    assert ping(space, "10.1.0.1")
    with space.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
        raw.bind(("eth0", 0))
        for number in range(1000):  # addresses that the bridge learns, and questions that it asks
            source = b"\x02\x99" + struct.pack("!I", number)
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + source + bytes([10, 1, 0, number % 200 + 20])
            raw.send(b"\xff" * 6 + source + b"\x08\x06" + arp + bytes(6) + bytes([10, 1, 0, 1]))
    learnt = built.overlay(NS).json("bridge -j fdb show dev p0")
    assert len(learnt) > 1000
    assert built.kernel.await_news(0.2, wake) == set()
    space.close()


@pytest.mark.kernel
def test_news_that_the_kernel_could_not_deliver_are_news(built: Host, wake: int) -> None:
    rows = [FdbEntry(NS, "vx0", PEER_MAC, ip_address("192.0.3.0") + n % 2) for n in range(5000)]
    built.kernel.apply([Set(row) for row in rows])
    assert built.kernel.await_news(1, wake) == {NS}
    assert built.kernel.await_news(AT_ONCE, wake) == set()


@pytest.mark.kernel
def test_the_underlays_device_and_address_are_told(host: Host, wake: int) -> None:
    vtep = ip_address("192.0.2.1")
    host.run("ip link add u0 type veth peer name u1; ip address add 192.0.2.1/24 dev u0; ip link set u0 up")
    assert host.kernel.underlay(vtep) == Underlay("u0", 1500)
    host.kernel.await_news(AT_ONCE, wake)
    for change, expected in (
        ("ip link set u0 mtu 1400", Underlay("u0", 1400)),
        ("ip link set u0 down; ip link set u0 name v0; ip link set v0 up", Underlay("v0", 1400)),
        ("ip address del 192.0.2.1/24 dev v0", None),
        ("ip address add 192.0.2.1/24 dev v0", Underlay("v0", 1400)),
        ("ip link del v0", None),
    ):
        host.run(change)
        assert host.kernel.await_news(1, wake) == {HOST}, change
        assert host.kernel.underlay(vtep) == expected
        host.kernel.await_news(AT_ONCE, wake)


@pytest.mark.kernel
def test_of_routes_only_the_default_ones_are_told(host: Host, wake: int) -> None:
    host.run("ip link add u0 type veth peer name u1; ip link set u0 up; ip address add 192.0.2.1/24 dev u0")
    host.kernel.underlay(None)
    host.kernel.await_news(AT_ONCE, wake)
    host.run("ip route add 10.9.0.0/16 via 192.0.2.254; ip route del 10.9.0.0/16")
    assert host.kernel.await_news(0.1, wake) == set()
    host.run("ip route add default via 192.0.2.254")
    assert host.kernel.await_news(1, wake) == {HOST}


@pytest.mark.kernel
def test_a_port_mended_with_its_bridge_settings_is_still_the_same(built: Host) -> None:
    space = built.overlay(NS)
    (before,) = space.json("ip -j link show p0")
    space.run("ip link set p0 type bridge_slave isolated on")
    want = network()
    port = want[Key(Port.kind, NS, "p0")]
    assert isinstance(port, Port)
    assert converge(built.kernel, {**want, port.key: replace(port, create=False)}) == want
    (after,) = space.json("ip -j link show p0")
    assert after["ifindex"] == before["ifindex"]


def _new_space() -> int:
    from driver.kernel import netns

    return netns.create()
