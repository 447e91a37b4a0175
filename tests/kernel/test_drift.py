"""What a careless hand changes is seen by read, and mended by diff and apply."""

from __future__ import annotations

import subprocess

import pytest

from driver.kernel.kinds import Namespace, Port
from driver.kernel.objects import Key
from driver.reconcile.plan import diff
from tests.kernel.hosts import Host, eventually
from tests.kernel.samples import NS, network
from tests.worlds import converge

pytestmark = pytest.mark.kernel

CHANGES = [
    "ip link set br0 down",
    "ip link set br0 mtu 1400",
    "ip link set br0 address 02:00:00:00:00:01",
    "ip link set br0 alias 'pyoverlay something else'",
    "ip link set br0 alias ''",
    "ip link set br0 type bridge mcast_snooping 1",
    "ip link set br0 type bridge stp_state 1",
    "ip link del br0",
    "ip link del br0 && ip link add br0 type veth peer name other && ip link set br0 alias 'pyoverlay x'",
    "echo 0 > /proc/sys/net/ipv4/conf/br0/forwarding",
    "echo 0 > /proc/sys/net/ipv4/ip_forward",
    "echo 0 > /proc/sys/net/ipv6/conf/br0/forwarding",
    "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    "ip address del 10.1.0.1/24 dev br0",
    "ip address add 10.99.0.1/24 dev br0",
    "ip address flush dev br0",
    "ip address flush dev br0 scope link",
    "ip link set vx0 down",
    "ip link set vx0 nomaster",
    "ip link set vx0 mtu 1400",
    "ip link set vx0 mtu 1200",
    "ip link set vx0 alias ''",
    "ip link set vx0 type vxlan learning",
    "ip link set vx0 type vxlan ttl 3",
    "ip link set vx0 type vxlan remote 192.0.2.50",
    "ip link set vx0 type vxlan local 192.0.2.50",
    "ip link set vx0 type vxlan df set",
    "ip link del vx0",
    "ip link del vx0 && ip link add vx0 type bridge && ip link set vx0 alias 'pyoverlay x'",
    "ip link set p0 down",
    "ip link set p0 nomaster",
    "ip link set p0 mtu 1400",
    "ip link set p0 alias 'pyoverlay something else'",
    "ip link set p0 alias ''",
    "ip link del p0",
    "bridge fdb del 02:42:0a:01:00:09 dev vx0 self",
    "bridge fdb replace 02:42:0a:01:00:09 dev vx0 dst 192.0.2.99 self permanent",
    "bridge fdb replace 02:42:0a:01:00:09 dev vx0 dst 192.0.2.2 port 1234 self permanent",
    "bridge fdb replace 02:42:0a:01:00:09 dev vx0 dst 192.0.2.2 vni 5 self permanent",
    "bridge fdb replace 02:42:0a:01:00:09 dev vx0 dst 192.0.2.2 self dynamic",
    "bridge fdb add 02:42:0a:01:00:55 dev vx0 dst 192.0.2.2 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.77 self permanent",
    "bridge fdb del 00:00:00:00:00:00 dev vx0 self",
    "ip neigh del 10.1.0.9 dev vx0",
    "ip neigh replace 10.1.0.9 lladdr 02:00:00:00:00:05 dev vx0 nud permanent",
    "ip neigh replace 10.1.0.9 lladdr 02:42:0a:01:00:09 dev vx0 nud stale",
    "ip neigh add 10.1.0.88 lladdr 02:00:00:00:00:05 dev vx0 nud permanent",
    "ip neigh flush dev vx0 nud permanent",
    "tc filter del dev vx0 ingress",
    "tc qdisc del dev vx0 clsact",
    "for d in br0 vx0 p0; do ip link del $d; done",
]


@pytest.fixture
def built(host: Host) -> Host:
    want = network()
    assert converge(host.kernel, want) == want
    return host


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_hand_is_seen_and_mended(built: Host, change: str) -> None:
    built.overlay(NS).run(change)
    want = network()
    assert diff(want, built.kernel.read_place(NS)), "nobody noticed"
    assert converge(built.kernel, want) == want


def test_a_pin_removed_by_hand_comes_back_with_all_that_runs_in_it(built: Host) -> None:
    want = network()
    (before,) = built.overlay(NS).json("ip -j link show p0")
    subprocess.run(["umount", "--lazy", str(built.directory / NS)], check=True)
    (built.directory / NS).unlink()
    assert list(built.kernel.namespaces()) == [NS]
    assert converge(built.kernel, want) == want
    (after,) = built.overlay(NS).json("ip -j link show p0")
    assert after["ifindex"] == before["ifindex"], "it was made anew, and a container has lost its network"


def test_a_network_whose_pin_was_removed_by_hand_still_ends(built: Host) -> None:
    subprocess.run(["umount", "--lazy", str(built.directory / NS)], check=True)
    assert converge(built.kernel, {}) == {}
    assert list(built.directory.iterdir()) == []


def test_a_pin_that_now_is_another_namespace_is_seen_and_mended(built: Host) -> None:
    pin = built.directory / NS
    subprocess.run(["umount", "--lazy", str(pin)], check=True)
    subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(pin)], check=True)
    assert [key.kind for key in built.kernel.read_place(NS)] == [Namespace.kind]
    want = network()
    # The former namespace ends in the background, and its VNI is busy until then.
    assert eventually(lambda: converge(built.kernel, want) == want)


def test_what_others_made_is_neither_read_nor_deleted(built: Host) -> None:
    space = built.overlay(NS)
    space.run(
        "ip link add dbg0 type bridge && ip link set dbg0 up && ip address add 10.5.0.1/24 dev dbg0;"
        "ip link add dbg1 type vxlan id 9 dstport 9999 remote 192.0.2.9 && ip link set dbg1 alias 'mine' up;"
        "bridge fdb add 02:00:00:00:00:09 dev dbg1 dst 192.0.2.9 self permanent;"
        "ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:05 dev br0 nud permanent;"
        "ip link add dbg2 type veth peer name dbg3 && ip link set dbg2 master br0 up"
    )
    want = network()
    assert built.kernel.read_place(NS) == want
    built.kernel.apply(diff({key: obj for key, obj in want.items() if key.kind == Namespace.kind}, want))
    left = {link["ifname"] for link in space.json("ip -j link")}
    assert {"dbg0", "dbg1", "dbg2", "dbg3"} <= left
    assert not {"br0", "vx0", "p0"} & left


def test_a_device_that_nobody_signed_yet_is_finished(host: Host) -> None:
    """A process died between making a device and naming it ours."""
    want = network()
    host.kernel.apply(diff({key: obj for key, obj in want.items() if key.kind == Namespace.kind}, {}))
    space = host.overlay(NS)
    space.run(f"ip link add br0 type bridge; ip link add p0 type veth peer name c0 netns {host.path}")
    host.run(f"ip link add vx0 netns {space.path} type vxlan id 1000 dstport 4789 nolearning proxy")
    assert converge(host.kernel, want) == want
    (peer,) = host.json("ip -j link show c0")
    port = want[Key(Port.kind, NS, "p0")]
    assert isinstance(port, Port)
    assert peer["address"] == port.peer_mac
