"""What a host decides by itself, and what it leaves to the Swarm's leader."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from driver.mode import Alone, InSwarm, Mode
from driver.wish.errors import BadRequest, Unsupported
from driver.wish.model import Endpoint, Host, Network, Segment, Subnet
from driver.wish.state import State, after_restart
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni

SUBNET, SIX = (Subnet(ip_network(prefix)) for prefix in ("10.0.0.0/24", "fd00::/64"))
OLD, NEW = NetworkId("a" * 64), NetworkId("b" * 64)
ADDRESS = ip_address("10.0.0.2")
HOLDER = Endpoint(EndpointId("e"), OLD, (ip_interface("10.0.0.2/24"),), Mac("02:42:0a:00:00:02"))
STATE = State(
    Host(NodeId("me")), {OLD: Network(OLD, (Segment(Vni(7), (SUBNET,)),))}, endpoints={HOLDER.id: HOLDER}
)


@pytest.fixture
def alone() -> Mode:
    return Alone()


@pytest.fixture
def in_swarm() -> Mode:
    return InSwarm()


def test_by_itself_a_host_refuses_what_is_taken(alone: Mode) -> None:
    assert alone.holder(STATE, OLD, ADDRESS) == HOLDER
    assert alone.taken_vnis(STATE, NEW, asked=True) == {7}


def test_what_remains_of_a_swarm_yields_its_vni_to_a_user_but_not_to_chance(alone: Mode) -> None:
    left = NetworkId("u4m9hzge31tsafr3nembuizn6")
    networks = {left: replace(STATE.networks[OLD], id=left)}
    forgotten = State(STATE.host, networks, doubtful=frozenset({left}))
    assert alone.taken_vnis(forgotten, NEW, asked=True) == set()
    assert alone.taken_vnis(forgotten, NEW, asked=False) == {7}


def test_a_network_of_this_host_keeps_its_vni_over_a_restart(alone: Mode) -> None:
    restarted = after_restart(replace(STATE, endpoints={}))
    assert OLD in restarted.doubtful
    for asked in (True, False):
        assert alone.taken_vnis(restarted, NEW, asked=asked) == {7}


def test_a_node_does_not_question_the_leader(in_swarm: Mode) -> None:
    theirs = NetworkId("u4m9hzge31tsafr3nembuizn6")
    holder = replace(HOLDER, network=theirs)
    network = replace(STATE.networks[OLD], id=theirs)
    state = State(STATE.host, {theirs: network}, endpoints={holder.id: holder})
    assert in_swarm.holder(state, theirs, ADDRESS) is None
    assert not in_swarm.taken_vnis(STATE, NEW, asked=True)


def test_in_a_network_from_before_the_swarm_nobody_else_gives_out_addresses(in_swarm: Mode) -> None:
    assert in_swarm.holder(STATE, OLD, ADDRESS) == HOLDER


def test_ipv6_is_for_a_host_by_itself(alone: Mode, in_swarm: Mode) -> None:
    alone.check_subnets([SUBNET, SIX])
    with pytest.raises(BadRequest, match="IPv6"):
        in_swarm.check_subnets([SUBNET, SIX])


def test_only_a_node_must_be_known_to_others(alone: Mode, in_swarm: Mode) -> None:
    alone.check_host(STATE.host)
    in_swarm.check_host(Host(NodeId("me"), ip_address("192.0.2.1")))
    with pytest.raises(Unsupported, match="PYOVERLAY_VTEP"):
        in_swarm.check_host(STATE.host)


def test_in_a_swarm_engines_make_no_networks(alone: Mode, in_swarm: Mode) -> None:
    alone.check_maker(STATE, NEW)
    in_swarm.check_maker(STATE, OLD)
    in_swarm.check_maker(STATE, NetworkId("u4m9hzge31tsafr3nembuizn6"))
    with pytest.raises(Unsupported, match=r"network bbbbbbbbbbbb.*for this host alone"):
        in_swarm.check_maker(STATE, NEW)


def test_in_a_swarm_networks_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("driver.pace.time.sleep", pauses.append)
    for mode in (InSwarm(), Alone()):
        mode.await_turn()
        mode.await_turn()
    first, second = pauses
    assert first == 0
    assert second > 0.1


@pytest.mark.parametrize(
    ("version", "paced"),
    [
        ((0, 0), True),
        ((20, 10), True),
        ((29, 5), True),
        ((29, 6), False),
        ((29, 10), False),
        ((30, 0), False),
    ],
)
def test_an_engine_whose_gossip_does_not_hang_has_no_turns(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], paced: bool
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("driver.pace.time.sleep", pauses.append)
    mode = InSwarm()
    mode.note_engine(version)
    mode.await_turn()
    assert bool(pauses) is paced
