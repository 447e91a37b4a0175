"""The real adapter: what ip(8) and bridge(8) see of its work, what it refuses, what it gives back."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from driver.kernel.host import NetlinkKernel
from driver.kernel.kinds import Bridge, BridgeAddress, FdbEntry, Namespace, Neighbour, Port, Vxlan
from driver.kernel.netlink import routes
from driver.kernel.netlink.socket import Channel, Refused
from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Delete, Set
from driver.reconcile.plan import diff
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import TUNNEL_MTU, mac_of
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.samples import NS, network
from tests.worlds import converge

pytestmark = pytest.mark.kernel

VXLAN: Key = Key(Vxlan.kind, NS, "vx0")
PORT: Key = Key(Port.kind, NS, "p0")


@pytest.fixture
def space(host: Host) -> Space:
    assert host.kernel.apply(diff(network(), {})) == {}
    return host.overlay(NS)


def test_ip_sees_the_tunnel_as_it_must_be(space: Space) -> None:
    (vxlan,) = space.json("ip -j -d link show vx0")
    data = vxlan["linkinfo"]["info_data"]
    assert vxlan["master"] == "br0"
    assert vxlan["mtu"] == TUNNEL_MTU
    assert vxlan["ifalias"] == "pyoverlay net1"
    assert "UP" in vxlan["flags"]
    assert vxlan["inet6_addr_gen_mode"] == "none"
    assert (data["id"], data["port"], data["local"]) == (1000, 4789, "192.0.2.1")
    assert data["port_range"] == {"low": 49152, "high": 65535}
    assert data["proxy"]
    on = {"learning", "rsc", "l2miss", "l3miss", "udp_csum", "udp_zero_csum6_tx", "udp_zero_csum6_rx", "gbp"}
    assert not [name for name in on if data.get(name)]


def test_ip_sees_the_bridge_as_it_must_be(space: Space) -> None:
    (bridge,) = space.json("ip -j -d link show br0")
    data = bridge["linkinfo"]["info_data"]
    assert (bridge["address"], bridge["mtu"]) == ("02:44:00:00:00:01", 1450)
    assert (data["forward_delay"], data["stp_state"], data["mcast_snooping"]) == (0, 0, 0)
    (shown,) = space.json("ip -j address show br0")
    assert {a["local"] for a in shown["addr_info"]} == {"10.1.0.1", "fd00:1::1", "fe80::44:ff:fe00:1"}
    assert not [a for a in shown["addr_info"] if a.get("tentative")]


def test_ip_sees_the_pair_as_it_must_be(host: Host, space: Space) -> None:
    (inner,) = space.json("ip -j -d link show p0")
    (outer,) = host.json("ip -j -d link show c0")
    assert (inner["master"], inner["mtu"], inner["ifalias"]) == ("br0", TUNNEL_MTU, "pyoverlay container")
    assert (outer["address"], outer["mtu"], outer["ifalias"]) == (
        "02:42:0a:01:00:02",
        1450,
        "pyoverlay container",
    )
    assert "UP" in inner["flags"]
    assert "UP" not in outer["flags"]


def test_bridge_sees_the_rows(space: Space) -> None:
    rows = [r for r in space.json("bridge -j fdb show dev vx0") if "dst" in r]
    assert {(r["mac"], r["dst"]) for r in rows} == {
        ("00:00:00:00:00:00", "192.0.2.2"),
        ("02:42:0a:01:00:09", "192.0.2.2"),
    }
    assert all(r["state"] == "permanent" and "self" in r["flags"] for r in rows)
    neighbours = space.json("ip -j neigh show dev vx0 nud permanent")
    assert {n["dst"] for n in neighbours} == {"10.1.0.9", "fd00:1::9"}


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/br0/forwarding", "1"),
        ("net/ipv6/conf/br0/forwarding", "1"),
        ("net/ipv6/conf/br0/accept_dad", "0"),
        ("net/ipv6/conf/br0/accept_ra", "0"),
        ("net/ipv4/conf/br0/rp_filter", "0"),
    ],
)
def test_the_namespace_routes(space: Space, knob: str, value: str) -> None:
    assert space.run(f"cat /proc/sys/{knob}").strip() == value


def test_the_host_sees_nothing_but_the_container_end(host: Host, space: Space) -> None:
    assert {link["ifname"] for link in host.json("ip -j link")} == {"lo", "c0"}
    assert {link["ifname"] for link in space.json("ip -j link")} == {"lo", "br0", "vx0", "p0"}


def test_no_passing_name_is_ever_seen_on_the_host(host: Host) -> None:
    seen = b""
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as monitor:
        monitor.bind((0, 1))  # RTMGRP_LINK
        host.kernel.apply(diff(network(), {}))
        monitor.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                seen += monitor.recv(65536)
    assert b"c0\0" in seen
    assert b"vx0\0" not in seen
    assert b"vxlan\0" not in seen


def test_a_vni_in_use_names_its_holder(host: Host) -> None:
    host.run("ip link add stranger type vxlan id 1000 dstport 4789 local 192.0.2.1")
    failure = host.kernel.apply(diff(network(), {}))[VXLAN]
    assert failure.errno == errno.EEXIST
    assert "VNI 1000 on UDP port 4789 is already used on this host by the VXLAN device stranger" in str(
        failure
    )
    assert "-o vni=" in str(failure)
    host.run("ip link del stranger")
    assert converge(host.kernel, network()) == network()


def test_the_udp_port_is_shared_with_dockers_overlay(host: Host) -> None:
    # Flags as libnetwork's overlay driver sets them.
    host.run("ip link add docker type vxlan id 4097 dstport 4789 learning proxy l2miss l3miss")
    host.run("ip link set docker up")
    assert host.kernel.apply(diff(network(), {})) == {}
    host.run("ip link add late type vxlan id 4098 dstport 4789 learning proxy l2miss l3miss")
    host.run("ip link set late up")


def test_a_udp_port_that_another_program_has_is_told(host: Host) -> None:
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 4789))
        failure = host.kernel.apply(diff(network(), {}))[VXLAN]
        assert failure.errno == errno.EADDRINUSE
        assert "ss -lun" in str(failure)
    assert converge(host.kernel, network()) == network()


def test_a_strangers_device_with_the_containers_name_is_not_touched(host: Host) -> None:
    host.run("ip link add c0 type bridge")
    failure = host.kernel.apply(diff(network(), {}))[PORT]
    assert failure.errno == errno.EEXIST
    assert "the host has a bridge device named c0 that is not pyoverlay's" in str(failure)
    host.run("ip link set c0 name mine")
    assert converge(host.kernel, network()) == network()


@pytest.mark.parametrize("alias", ["", "somebody"])
def test_a_strangers_device_in_the_namespace_is_not_touched(host: Host, alias: str) -> None:
    host.kernel.apply([Set(Namespace(NS))])
    space = host.overlay(NS)
    space.run(f"ip link add br0 type veth peer name dbg && ip link set br0 alias '{alias}'")
    failure = host.kernel.apply(diff(network(), {}))[Key(Bridge.kind, NS, "br0")]
    assert f"{NS} has a veth device named br0 that is not pyoverlay's" in str(failure)
    assert {"br0", "dbg"} <= {link["ifname"] for link in space.json("ip -j link")}


def test_a_stale_container_end_of_ours_is_replaced(host: Host) -> None:
    host.run("ip link add c0 type veth peer name elsewhere && ip link set c0 alias 'pyoverlay container'")
    assert host.kernel.apply(diff(network(), {})) == {}
    assert "elsewhere" not in {link["ifname"] for link in host.json("ip -j link")}


def test_the_container_end_goes_with_its_port(host: Host, space: Space) -> None:
    host.kernel.apply([Delete(network()[PORT])])
    assert {link["ifname"] for link in host.json("ip -j link")} == {"lo"}


def test_a_namespace_that_ends_frees_its_vni_at_once(host: Host) -> None:
    for number in range(10):
        want = network(ns=f"pyoverlay-n{number}")
        assert host.kernel.apply(diff(want, {})) == {}
        assert host.kernel.apply(diff({}, want)) == {}


def test_the_namespace_really_ends(host: Host, space: Space) -> None:
    space.close()
    host.kernel.apply(diff({}, network()))
    # The host keeps ids of namespaces that its devices are linked to, until those end.
    assert eventually(lambda: host.run("ip netns list-id") == "")


def test_a_restarted_process_reads_what_the_former_made(host: Host, space: Space) -> None:
    again = host.inside(lambda: NetlinkKernel(host.directory))
    assert again.read_place(NS) == network()
    again.close()


def test_a_process_without_capabilities_says_so(host: Host) -> None:
    pid = os.fork()
    if pid == 0:
        verdict = 1
        try:
            os.setresuid(65534, 65534, 65534)
            failure = host.kernel.apply([Set(Namespace(NS))])[Key(Namespace.kind, NS)]
            verdict = 0 if "CAP_SYS_ADMIN" in str(failure) else 2
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_two_hundred_networks_come_and_go_without_a_leak(host: Host) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def cycle(number: int) -> None:
        name = f"pyoverlay-{number}"
        bridge = Bridge(name, "br0", network_mac, 1450, "pyoverlay x")
        want: dict[Key, KernelObject] = {obj.key: obj for obj in (Namespace(name), bridge)}
        assert host.kernel.apply(diff(want, {})) == {}
        assert host.kernel.read_place(name) == want
        assert host.kernel.apply(diff({}, want)) == {}

    network_mac = mac_of(ip_address("10.0.0.1"))
    cycle(0)
    before = open_files(), threading.active_count(), len(os.listdir("/proc/self/task"))
    for number in range(1, 201):
        cycle(number)
    assert eventually(lambda: len(os.listdir("/proc/self/task")) == before[2])
    assert (open_files(), threading.active_count()) == before[:2]
    assert list(host.kernel.namespaces()) == []


def test_thousands_of_rows_go_in_and_out_whole(host: Host, space: Space) -> None:
    """10,000 endpoints in 0.5 s is the goal; the bound here is loose, for slow machines."""
    want = network()
    for number in range(10_000):
        address = ip_address("10.2.0.0") + number
        row = FdbEntry(NS, "vx0", mac_of(address), ip_address("192.0.2.2") + number % 50)
        neighbour = Neighbour(NS, "vx0", address, mac_of(address))
        want |= {row.key: row, neighbour.key: neighbour}
    ops = diff(want, host.kernel.read_place(NS))
    start = time.perf_counter()
    assert host.kernel.apply(ops) == {}
    written = time.perf_counter()
    assert host.kernel.read_place(NS) == want
    read = time.perf_counter()
    print(f"20,000 rows: written in {written - start:.3f} s, read in {read - written:.3f} s")
    assert read - start < 5
    assert converge(host.kernel, network()) == network()


def test_one_bad_row_among_many_fails_alone(host: Host, space: Space) -> None:
    rows = [
        FdbEntry(NS, "vx0", mac_of(ip_address("10.2.0.0") + n), ip_address("192.0.2.2")) for n in range(1000)
    ]
    bad = {0, 199, 200, 500, 999}
    rows = [r._replace(vtep=ip_address("2001:db8::2")) if n in bad else r for n, r in enumerate(rows)]
    failures = host.kernel.apply([Set(row) for row in rows])
    assert set(failures) == {rows[n].key for n in bad}
    assert len([key for key in host.kernel.read_place(NS) if key.kind == FdbEntry.kind]) == 995 + 2


def test_a_bridge_keeps_its_mtu_whatever_its_ports_have(host: Host) -> None:
    want = network(mtu=1500)
    assert host.kernel.apply(diff(want, {})) == {}
    host.overlay(NS).run("ip link add dbg0 mtu 1300 master br0 type veth; ip link set dbg0 mtu 1200")
    assert host.kernel.read_place(NS) == want


@pytest.mark.parametrize("local", ["192.0.2.1", "2001:db8::1"])
def test_what_a_former_version_made_is_changed_in_place(host: Host, local: str) -> None:
    """It gave every device the containers' MTU; the engine has the container end by now."""
    want = network(local=local)
    former = {key: replace(o, mtu=1450) if isinstance(o, Port | Vxlan) else o for key, o in want.items()}
    assert host.kernel.apply(diff(former, {})) == {}
    before = {link["ifname"]: link["ifindex"] for link in host.overlay(NS).json("ip -j link")}
    assert host.kernel.read_place(NS) == former
    ops = diff(want, former)
    assert {op.want.key for op in ops if isinstance(op, Set)} == {PORT, VXLAN}
    assert host.kernel.apply(ops) == {}
    assert host.kernel.read_place(NS) == want
    assert {link["ifname"]: link["ifindex"] for link in host.overlay(NS).json("ip -j link")} == before


def test_routes_are_the_hosts_own(host: Host) -> None:
    host.run(
        "ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up;"
        "ip address add 192.0.2.1/24 dev up0; ip address add 2001:db8::1/64 dev up0 nodad;"
        "ip route add default via 192.0.2.254; ip route add 198.51.100.0/24 via 192.0.2.253;"
        "ip route add blackhole 203.0.113.0/24; ip route add 10.9.0.0/16 dev up0 table 77;"
        "ip -6 route add default via 2001:db8::fe"
    )
    assert set(host.inside(routes.routes)) == {
        ip_network(text)
        for text in (
            "192.0.2.0/24",
            "192.0.2.1/32",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "10.9.0.0/16",
            "2001:db8::/64",
            "2001:db8::1/128",
        )
    }


def test_the_underlay_is_the_device_of_the_address_or_of_the_default_route(host: Host) -> None:
    assert host.kernel.underlay(None) is None
    assert host.inside(routes.default_source) is None
    host.run(
        "for i in 0 1; do ip link add up$i type veth peer name x$i; done;"
        "for i in up0 x0 up1 x1; do ip link set $i up; done;"
        "ip link set up0 mtu 1400; ip link set up1 mtu 9000; ip address add 198.51.100.1/32 dev lo;"
        "ip address add 192.0.2.1/24 dev up0; ip address add 192.0.2.7/24 dev up0;"
        "ip address add 10.0.0.1/24 dev up1;"
        "ip route add default via 192.0.2.254 metric 100; ip route add default via 10.0.0.254 metric 200"
    )
    assert host.kernel.underlay(None) == Underlay("up0", 1400)
    assert host.kernel.underlay(ip_address("10.0.0.1")) == Underlay("up1", 9000)
    assert host.kernel.underlay(ip_address("198.51.100.1")) == Underlay("up0", 1400)
    assert host.kernel.underlay(ip_address("10.0.0.77")) == Underlay("up1", 9000, has_vtep=False)
    assert host.kernel.underlay(ip_address("203.0.113.1")) == Underlay("up0", 1400, has_vtep=False)
    assert host.kernel.underlay(ip_address("2001:db8::1")) == Underlay("up0", 1400, has_vtep=False)
    host.run("ip address add 2001:db8:1::1/64 dev up1 nodad; ip -6 route add default via 2001:db8:1::fe")
    assert host.kernel.underlay(ip_address("2001:db8::1")) == Underlay("up1", 9000, has_vtep=False)
    host.run("ip route add unreachable 203.0.113.0/24")
    assert host.kernel.underlay(ip_address("203.0.113.1")) == Underlay("up0", 1400, has_vtep=False)
    assert host.inside(routes.default_source) == ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("route", "source"),
    [
        ("ip route add default via 192.0.2.254 src 192.0.2.7", "192.0.2.7"),
        ("ip route add default dev up0", "192.0.2.1"),
        ("ip route add default nexthop via 192.0.2.254 nexthop via 192.0.2.253", "192.0.2.1"),
        ("ip -6 route add default via 2001:db8::fe dev up0", "2001:db8::1"),
        ("ip -6 route add default via fe80::1 dev up0", "2001:db8::1"),
    ],
)
def test_the_default_source_is_what_a_connection_would_have(host: Host, route: str, source: str) -> None:
    host.run(
        "ip link add up0 type veth peer name x0; ip link set up0 up; ip link set x0 up;"
        "ip address add 192.0.2.1/24 dev up0; ip address add 192.0.2.7/24 dev up0;"
        f"ip address add 2001:db8::1/64 dev up0 nodad; {route}"
    )
    assert host.inside(routes.default_source) == ip_address(source)


def test_an_interrupted_dump_is_read_again(host: Host, space: Space) -> None:
    channel = host.inside(Channel.here)
    answers = [None, None, [b"whole"]]
    channel._dump_once = lambda kind, body: answers.pop(0)  # type: ignore[method-assign]
    assert channel.dump(18, b"") == [b"whole"]
    channel._dump_once = lambda kind, body: None  # type: ignore[method-assign]
    with pytest.raises(Refused, match="changed during"):
        channel.dump(18, b"")
    channel.close()


def test_a_namespace_that_cannot_be_read_says_which(host: Host, space: Space) -> None:
    host.kernel.read_place(NS)
    spaces = host.kernel._spaces
    spaces.open[NS].channel._socket.close()
    with pytest.raises(KernelError, match=f"cannot read network namespace {NS}"):
        host.kernel.read_place(NS)


def test_addresses_of_two_families_are_read_as_they_were_set(host: Host, space: Space) -> None:
    address = BridgeAddress(NS, "br0", ip_interface("fd00:2::1/56"))
    assert host.kernel.apply([Set(address), Set(address)]) == {}
    assert host.kernel.read_place(NS)[address.key] == address
    assert host.kernel.apply([Delete(address)]) == {}
    assert address.key not in host.kernel.read_place(NS)
