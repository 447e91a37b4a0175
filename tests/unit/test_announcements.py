"""What containers are told of whose address is another's now: on the fake kernel, and in pure form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from driver.cluster.memory import MemoryStore
from driver.kernel.announce import frame
from driver.kernel.kinds import Bridge, BridgeAddress, Neighbour, Port, Vxlan
from driver.kernel.names import port_name
from driver.kernel.objects import KernelState, index
from driver.kernel.ops import Announcement, Owner
from driver.reconcile.announcements import announcements
from driver.reconcile.plan import diff
from driver.wish.values import EndpointId, Mac, Vni, mac_of
from tests.unit.test_overlay import EP, EP2, NET, Node, _soon

ADDRESS = ip_address("10.62.0.9")
EP3 = "3" * 64


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    store = MemoryStore()
    made = [Node(number, store) for number in (1, 2)]
    for node in made:
        node.create()
    yield made
    for node in made:
        node.end()


def heard(node: Node, endpoint: str) -> dict[str, str]:
    return {str(a): mac for a, mac in node.kernel.heard.get(port_name(EndpointId(endpoint)), {}).items()}


@pytest.mark.parametrize("where", [0, 1])
def test_whoever_was_there_hears_of_a_new_owner(nodes: list[Node], where: int) -> None:
    nodes[0].attach(EP, "10.62.0.4")
    nodes[where].attach(EP2, str(ADDRESS))
    assert _soon(lambda: heard(nodes[0], EP) == {str(ADDRESS): mac_of(ADDRESS)})
    assert str(ADDRESS) not in heard(nodes[where], EP2)


def test_an_address_that_comes_back_with_another_mac(nodes: list[Node]) -> None:
    nodes[0].attach(EP, "10.62.0.4")
    nodes[1].attach(EP2, str(ADDRESS))
    nodes[1].detach(EP2)
    mac = Mac("02:42:00:00:00:99")
    nodes[0].overlay.create_endpoint(NET, EP3, [ip_interface(f"{ADDRESS}/24")], mac, {})
    nodes[0].overlay.join(NET, EP3, "/run/docker/netns/y")
    assert _soon(lambda: heard(nodes[0], EP) == {str(ADDRESS): mac})


class TestWhom:
    def wish(self, mac: str = "02:44:00:00:00:01", rows: int = 0, ports: int = 2) -> KernelState:
        found = [
            Neighbour("ns", "vx1", ADDRESS + n, Mac(f"02:42:00:00:{n >> 8:02x}:{n & 255:02x}"))
            for n in range(rows)
        ]
        return index(
            [
                Bridge("ns", "br1", Mac(mac), 1450, ""),
                Bridge("ns", "br2", Mac(mac), 1450, ""),
                BridgeAddress("ns", "br1", ip_interface("10.62.0.1/24")),
                Vxlan("ns", "vx1", Vni(1), 4789, None, "br1", ""),
                *(Port("ns", f"p{n}", f"br{1 + n % 2}", "") for n in range(ports)),
                *found,
            ]
        )

    def after(self, have: KernelState, want: KernelState) -> list[Announcement]:
        return list(announcements(diff(want, have), have, want, []))

    def test_only_those_on_the_same_bridge(self) -> None:
        owner = Owner(ADDRESS, Mac("02:42:00:00:00:00"))
        assert self.after(self.wish(), self.wish(rows=1)) == [Announcement("ns", "br1", ("p0",), (owner,))]

    def test_the_first_container_hears_nothing_of_all_the_others(self) -> None:
        assert self.after({}, self.wish(rows=1)) == []

    def test_of_a_gateways_new_mac(self) -> None:
        new = "02:44:00:00:00:02"
        owner = Owner(ip_address("10.62.0.1"), Mac(new), routes=True)
        assert self.after(self.wish(), self.wish(new)) == [Announcement("ns", "br1", ("p0",), (owner,))]

    def test_nobody_when_an_address_has_gone_or_when_nothing_but_a_setting_was_wrong(self) -> None:
        want = self.wish()
        assert self.after(self.wish(rows=1), want) == []
        port = next(obj for obj in want.values() if isinstance(obj, Port))
        assert self.after({**want, port.key: replace(port, sound=False)}, want) == []

    def test_ten_thousand_at_once_are_too_many(self) -> None:
        (one,) = self.after(self.wish(ports=20), self.wish(rows=10_000, ports=20))
        assert len(one.ports) == 10
        assert len(one.owners) == 200


def test_what_is_said() -> None:
    mac = Mac("02:42:0a:01:00:09")
    assert frame(Owner(ip_address("10.1.0.9"), mac)).hex(" ", 2) == (
        "ffff ffff ffff 0242 0a01 0009 0806 0001 0800 0604 0002 "
        "0242 0a01 0009 0a01 0009 0242 0a01 0009 0a01 0009"
    )
    said = frame(Owner(ip_address("fd00::9"), mac, routes=True))
    assert said[:14].hex(" ", 2) == "3333 0000 0001 0242 0a01 0009 86dd"
    assert said[14:54].hex(" ", 2) == (
        "6000 0000 0020 3aff fd00 0000 0000 0000 0000 0000 0000 0009 ff02 0000 0000 0000 0000 0000 0000 0001"
    )
    assert said[54:56].hex() == "8800"
    assert said[58:].hex(" ", 2) == ("a000 0000 fd00 0000 0000 0000 0000 0000 0000 0009 0201 0242 0a01 0009")
