"""A host's identity is that of a machine and of its membership in a Swarm, not of a state folder."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from driver.wish.disk import decode, encode
from driver.wish.model import Endpoint, Host, Network, Phase, Segment, Subnet
from driver.wish.state import State, as_member, with_allocation
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni
from ipam.allocator import without_swarm
from ipam.pools import IpamState, Pool, Space

ALONE = NetworkId("a" * 64)
IDLE, USED = NetworkId("idle0hzge31tsafr3nembuizn6"), NetworkId("used0hzge31tsafr3nembuizn6")
FRESH = NodeId("fresh")
SUBNET = Subnet(ip_network("10.1.0.0/24"), ip_address("10.1.0.1"))


def host(member: str = "") -> State:
    """A host with a network of its own and two of a Swarm, one of them with a container."""
    networks = {n: Network(n, (Segment(Vni(70 + i), (SUBNET,)),)) for i, n in enumerate((ALONE, IDLE, USED))}
    one = Endpoint(
        EndpointId("e"),
        USED,
        (ip_interface("10.1.0.5/24"),),
        Mac("02:42:0a:01:00:05"),
        Phase.JOINED,
    )
    state = State(Host(NodeId("old"), ip_address("192.0.2.1"), 4790, member), networks, {one.id: one})
    return with_allocation(state, IDLE, (Vni(71),))


def test_a_host_of_a_former_version_keeps_its_identity_and_is_bound() -> None:
    """The others know its records by it: no packet may be lost in the upgrade."""
    after = as_member(host(), "swarm x", FRESH)
    assert after == replace(host(), host=replace(host().host, member="swarm x"))
    assert as_member(after, "swarm x", FRESH) is after


def test_what_nothing_relies_on_yet_gets_the_identity_of_its_node() -> None:
    empty = State(Host(NodeId("random")))
    assert as_member(empty, "swarm x", FRESH).host == Host(FRESH, member="swarm x")


def test_while_the_swarm_has_not_said_who_we_are_nothing_changes() -> None:
    state = host("machine m")
    assert as_member(state, "", NodeId("")) is state


@pytest.mark.parametrize(
    ("former", "member"),
    [("swarm x", "swarm y"), ("swarm x", "machine m"), ("machine m", "swarm x"), ("machine m", "machine n")],
)
def test_elsewhere_it_is_another_host(former: str, member: str) -> None:
    """Clones, copied folders, other Swarms: what belongs to the former one goes, unless it is used."""
    after = as_member(host(former), member, FRESH)
    assert after.host == Host(FRESH, ip_address("192.0.2.1"), None, member)
    assert set(after.networks) == {ALONE, USED}
    assert set(after.endpoints) == {"e"}
    assert not after.allocations


def test_the_binding_is_on_disk_and_may_be_missing_there() -> None:
    bound = host("swarm x")
    assert decode(encode(bound)).host == bound.host
    written = encode(bound)
    del written["host"]["member"]
    assert decode(written).host == replace(bound.host, member="")


def test_leases_of_a_former_swarm_go_and_those_of_own_networks_stay() -> None:
    own, theirs = ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")
    pools = {(space, prefix): Pool(prefix) for space in Space for prefix in (own, theirs)}
    after = without_swarm(IpamState(1, pools), [own])
    assert set(after.pools) == {(Space.LOCAL, own)}
