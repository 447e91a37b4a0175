"""Containers hear at once of an address that is another's now, and nobody else does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from ipaddress import ip_address

import pytest

from driver.kernel import netns
from driver.kernel.names import namespace_name
from driver.kernel.netlink import numbers as nl
from driver.kernel.ops import Announcement, Owner
from driver.reconcile.plan import diff
from driver.wish.values import Mac, NetworkId, mac_of, octets
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, endpoint_id, running
from tests.kernel.samples import NS, network

pytestmark = pytest.mark.kernel

NET = NetworkId("moves")
ADDRESS = "10.1.0.9"
OTHER_MAC = Mac("02:42:00:00:00:99")
PATIENT = """
    for family in ipv4 ipv6; do cd /proc/sys/net/$family/neigh/eth0
    echo 3600000 >retrans_time_ms; echo 3600000 >base_reachable_time_ms; echo 3600 >gc_stale_time
    echo 3600 >delay_first_probe_time; done
"""
"""Has the kernel ask once, and believe for an hour: what it learns, it was told."""


@pytest.fixture
def machines(hosts: Callable[[], Host]) -> Iterator[list[Machine]]:
    with running([hosts(), hosts()]) as made:
        for machine in made:
            machine.create(NET, "10.1.0.0/24", 7001)
        yield made


def known(container: Space, address: str = ADDRESS) -> str:
    """Which MAC a container has for an address; INCOMPLETE while it waits for an answer."""
    for one in container.json(f"ip -j neighbour show {address}"):
        return str(one.get("lladdr") or one["state"][0])
    return ""


def speak(container: Space, address: str = ADDRESS) -> None:
    """Send a datagram that has the kernel ask for a neighbour."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with container.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", (address, 9))


def end(machine: Machine, space: Space) -> None:
    """Stop the container with the address that moves."""
    machine.containers.remove(space)
    space.close()
    machine.overlay.leave(NET, endpoint_id(NET, ADDRESS))
    machine.overlay.delete_endpoint(NET, endpoint_id(NET, ADDRESS))


@pytest.mark.parametrize("place", ["here", "there"])
def test_who_waits_for_an_address_hears_of_its_owner(machines: list[Machine], place: str) -> None:
    here, there = machines
    client = here.attach(NET, "10.1.0.2")
    there.attach(NET, "10.1.0.3")
    client.run(PATIENT)
    speak(client)
    assert eventually(lambda: known(client) == "INCOMPLETE")
    (here if place == "here" else there).attach(NET, ADDRESS)
    assert eventually(lambda: known(client) == mac_of(ip_address(ADDRESS)))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_who_knew_another_mac_hears_of_the_new_one(machines: list[Machine], before: int, after: int) -> None:
    """The client is on the first host; the address comes back on the same host, or on the other one."""
    client = machines[0].attach(NET, "10.1.0.2")
    machines[1].attach(NET, "10.1.0.3")
    client.run(PATIENT)
    former = machines[before].attach(NET, ADDRESS)
    speak(client)
    assert eventually(lambda: known(client) == mac_of(ip_address(ADDRESS)))
    end(machines[before], former)
    machines[after].attach(NET, ADDRESS, mac=OTHER_MAC)
    assert eventually(lambda: known(client) == OTHER_MAC)


def captured(tap: socket.socket) -> Iterator[tuple[bytes, str]]:
    """Take what a socket has captured, each with the device it passed."""
    tap.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            frame, (device, *_) = tap.recvfrom(2048)
            yield frame, device


class TestOnOneHost:
    """The kernel alone, without anybody who wishes."""

    @pytest.fixture
    def container(self, host: Host) -> Iterator[Space]:
        assert host.kernel.apply(diff(network(), {})) == {}
        with closing(Space(netns.create())) as made:
            host.run(f"ip link set c0 netns {made.path} name eth0")
            made.run(
                "ip address add 10.1.0.2/24 dev eth0; ip address add fd00:1::2/64 dev eth0 nodad;"
                "ip link set eth0 up"
            )
            made.run(PATIENT)
            yield made

    @pytest.mark.parametrize("address", ["10.1.0.77", "fd00:1::77"])
    def test_both_families(self, host: Host, container: Space, address: str) -> None:
        speak(container, address)
        assert eventually(lambda: known(container, address) == "INCOMPLETE")
        for mac in (Mac("02:42:0a:01:00:4d"), OTHER_MAC):
            host.kernel.announce(Announcement(NS, "br0", ("p0",), (Owner(ip_address(address), mac),)))
            assert known(container, address) == mac

    def test_who_does_not_care_learns_nothing(self, host: Host, container: Space) -> None:
        host.kernel.announce(Announcement(NS, "br0", ("p0",), (Owner(ip_address(ADDRESS), OTHER_MAC),)))
        assert known(container) == ""
        with closing(host.overlay(NS)) as overlay:
            assert known(overlay, f"{ADDRESS} dev br0") == ""

    def test_the_bridge_hears_too(self, host: Host, container: Space) -> None:
        """It routes from one subnet of the network to another."""
        with closing(host.overlay(NS)) as overlay:
            overlay.run(f"ip neighbour add {ADDRESS} lladdr 02:42:0a:01:00:4d dev br0 nud reachable")
            host.kernel.announce(Announcement(NS, "br0", (), (Owner(ip_address(ADDRESS), OTHER_MAC),)))
            assert known(overlay, f"{ADDRESS} dev br0") == OTHER_MAC

    def test_nobody_on_other_hosts_hears_and_the_bridge_learns_nothing(
        self, host: Host, container: Space
    ) -> None:
        owners = tuple(Owner(ip_address(a), OTHER_MAC) for a in (ADDRESS, "fd00:1::9"))
        with closing(host.overlay(NS)) as overlay:
            with overlay.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(nl.ETH_P_ALL)) as tap:
                host.kernel.announce(Announcement(NS, "br0", ("p0", "gone"), owners))
                seen = list(captured(tap))
            assert [device for frame, device in seen if frame[6:12] == octets(OTHER_MAC)] == ["p0", "p0"]
            assert OTHER_MAC not in overlay.run("bridge fdb show br br0")

    def test_where_nothing_is_there_is_nothing_to_do(self, host: Host) -> None:
        nowhere = Announcement(namespace_name(NET), "br0", ("p0",), (Owner(ip_address(ADDRESS), OTHER_MAC),))
        host.kernel.announce(nowhere)
        assert not host.kernel.namespaces()
