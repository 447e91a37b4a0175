"""Where a connection to a virtual address goes, by what the leader says and what the hosts announce."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface

from driver.kernel.kinds import Balancer
from driver.kernel.objects import Key
from driver.reconcile.balancers import balancers, usable
from driver.wish.model import Endpoint, Host, Network, Peer, PeerNode, Peers, Phase
from driver.wish.peers import heard
from driver.wish.records import ServiceRecord, View
from driver.wish.state import State
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId, mac_of

NET, NET2 = NetworkId("net1"), NetworkId("net2")
A, B = NodeId("a"), NodeId("b")
VIP = ip_address("10.1.0.200")


def at(number: int) -> Address:
    return ip_address(f"10.1.0.{number}")


def record(*numbers: int, vip: Address = VIP, network: NetworkId = NET) -> ServiceRecord:
    return ServiceRecord(network, vip, "web", tuple(map(at, numbers)))


def endpoint(number: int, phase: Phase = Phase.JOINED, network: NetworkId = NET) -> Endpoint:
    identity = EndpointId(f"e{number}")
    interface = ip_interface(f"{at(number)}/24")
    return Endpoint(identity, network, (interface,), mac_of(at(number)), phase, f"/run/docker/netns/{number}")


def state(*services: ServiceRecord, synced: bool = True) -> State:
    """A host with tasks 1 and 2; node a has 11 and 12, node b 21."""
    here = [endpoint(1), endpoint(2)]
    rows = {at(n): Peer(Mac(""), ip_address("192.0.2.9"), A if n < 20 else B) for n in (11, 12, 21)}
    nodes = {node: PeerNode(ip_address("192.0.2.9")) for node in (A, B)}
    return State(
        Host(NodeId("me")),
        {NET: Network(NET, ())},
        {e.id: e for e in here},
        peers=Peers(nodes, {NET: rows}, frozenset({NET}) if synced else frozenset()),
        services={NET: {service.vip: service for service in services}},
    )


def goes_to(state: State, vip: Address = VIP) -> list[int] | None:
    found = usable(state, NET)
    return None if found is None else [int(str(b).rpartition(".")[2]) for b in found[vip]]


class TestHeard:
    def test_what_the_leader_says_replaces_what_it_said(self) -> None:
        new = {VIP: record(1)}
        assert heard({NET: {VIP: record()}}, View(True, services={NET: new}), [NET]) == {NET: new}

    def test_silence_changes_nothing(self) -> None:
        known = {NET: {VIP: record(1)}}
        assert heard(known, View(True), [NET]) == known
        assert heard(known, View(False, services={NET: {}}), [NET]) == known

    def test_no_services_is_a_word_too(self) -> None:
        assert heard({NET: {VIP: record(1)}}, View(True, services={NET: {}}), [NET]) == {NET: {}}

    def test_what_is_not_followed_any_more_is_dropped(self) -> None:
        assert heard({NET: {VIP: record(1)}}, View(False), [NET2]) == {}


class TestUsable:
    def test_while_nobody_has_said_anything_nothing_is_known(self) -> None:
        assert usable(replace(state(), services={}), NET) is None

    def test_tasks_here_and_there(self) -> None:
        assert goes_to(state(record(1, 2, 11, 21))) == [1, 2, 11, 21]

    def test_who_is_not_announced_gets_nothing(self) -> None:
        assert goes_to(state(record(1, 3, 11, 13))) == [1, 11]
        assert goes_to(state(record(3))) == []

    def test_a_container_that_leaves_gets_nothing(self) -> None:
        before = state(record(1, 11))
        leaving = replace(before, endpoints={EndpointId("e1"): endpoint(1, Phase.LEFT)})
        assert goes_to(leaving) == [11]
        assert goes_to(replace(before, doubtful=frozenset({EndpointId("e1")}))) == [11]

    def test_as_long_as_the_others_are_not_known_the_leader_is_believed(self) -> None:
        assert goes_to(state(record(1, 3, 11, 13), synced=False)) == [1, 3, 11, 13]

    def test_hosts_that_are_away_get_nothing_while_there_is_another(self) -> None:
        now = state(record(1, 11, 21))
        away = {A: PeerNode(ip_address("192.0.2.9"), stale_since=1.0), B: PeerNode(ip_address("192.0.2.9"))}
        assert goes_to(replace(now, peers=replace(now.peers, nodes=away))) == [1, 21]
        alone = state(record(11, 12))
        assert goes_to(replace(alone, peers=replace(alone.peers, nodes=away))) == [11, 12]

    def test_the_address_of_a_container_is_never_taken_from_it(self) -> None:
        assert usable(state(record(1, vip=at(2)), record(1, vip=at(12))), NET) == {}

    def test_ipv6_is_left_out(self) -> None:
        assert usable(state(record(1, vip=ip_address("fd00::1"))), NET) == {}


class TestBalancers:
    def wish(self, state: State) -> dict[str, list[Balancer]]:
        wish, _ = balancers(state, {NET: usable(state, NET)})
        return {sandbox: list(wanted.values()) for sandbox, wanted in wish.items()}

    def test_every_container_gets_one(self) -> None:
        wish = self.wish(state(record(1, 11)))
        assert wish.keys() == {"/run/docker/netns/1", "/run/docker/netns/2"}
        for sandbox, (one,) in wish.items():
            assert one == Balancer(sandbox, "pyoverlay-net1", {VIP: (at(1), at(11))})

    def test_a_network_without_services_needs_none(self) -> None:
        assert list(self.wish(state()).values()) == [[], []]

    def test_who_has_left_is_to_hold_nothing(self) -> None:
        now = state(record(1))
        now = replace(now, endpoints={EndpointId("e1"): endpoint(1, Phase.LEFT)})
        assert self.wish(now) == {"/run/docker/netns/1": []}

    def test_who_has_no_sandbox_yet_is_to_hold_nothing(self) -> None:
        now = state(record(1))
        young = replace(endpoint(1), sandbox="", phase=Phase.CREATED)
        assert self.wish(replace(now, endpoints={young.id: young})) == {}

    def test_what_nobody_has_spoken_of_stays_as_it_is(self) -> None:
        wish, kept = balancers(replace(state(), services={}), {NET: None})
        assert kept == {Key(Balancer.kind, f"/run/docker/netns/{n}", "pyoverlay-net1") for n in (1, 2)}
        assert list(wish.values()) == [{}, {}]

    def test_a_container_in_two_networks_gets_two_in_one_sandbox(self) -> None:
        now = state(record(1))
        second = replace(endpoint(3, network=NET2), sandbox="/run/docker/netns/1")
        now = replace(now, endpoints={**now.endpoints, second.id: second})
        services = {NET: usable(now, NET), NET2: {at(9): (at(3),)}}
        wish, _ = balancers(now, services)
        assert {one.namespace for one in wish["/run/docker/netns/1"].values()} == {
            "pyoverlay-net1",
            "pyoverlay-net2",
        }
