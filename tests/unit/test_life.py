"""The table of an endpoint's life: it is whole, its text is true, and the state goes by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver.cluster.publication import publication
from driver.kernel.kinds import Port
from driver.kernel.names import port_name
from driver.reconcile.desired import desired
from driver.wish import life as module
from driver.wish.disk import decode, encode
from driver.wish.errors import NotFound
from driver.wish.life import LIVES, Event, Life
from driver.wish.model import Endpoint, Host, Network, Segment, Subnet
from driver.wish.state import (
    State,
    after_restart,
    with_doubt,
    with_endpoint,
    with_join,
    with_join_answered,
    with_join_undone,
    with_leave,
    with_network,
    without_doubtful,
    without_endpoint,
    without_network,
)
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni

NET = Network(NetworkId("net"), (Segment(Vni(1), (Subnet(ip_network("10.0.0.0/24")),)),))
EMPTY = State(Host(NodeId("me"), ip_address("192.0.2.1")), {NET.id: NET})
ONE, TWIN, OTHER, RIVAL = (EndpointId(letter * 20) for letter in "abcd")
ADDRESSES = {ONE: "10.0.0.1", TWIN: "10.0.0.1", OTHER: "10.0.0.2"}
REFUSED = {(Life.ABSENT, Event.JOIN)}
PAIRS = [(life, event) for life in Life for event in Event]


def endpoint(id_: EndpointId) -> Endpoint:
    return Endpoint(id_, NET.id, (ip_interface(f"{ADDRESSES[id_]}/24"),), Mac("02:42:0a:00:00:01"))


HAPPEN: Mapping[Event, Callable[[State, EndpointId], State]] = {
    Event.CREATE: lambda state, id_: with_endpoint(state, endpoint(id_)),
    Event.JOIN: lambda state, id_: with_join(state, NET.id, id_, "/run/docker/netns/x", object()),
    Event.ANSWERED: lambda state, id_: with_join_answered(state, id_, state.joining.get(id_, object())),
    Event.UNDONE: lambda state, id_: with_join_undone(state, id_, state.joining.get(id_, object())),
    Event.LEAVE: with_leave,
    Event.DELETE: without_endpoint,
    Event.NETWORK_GONE: lambda state, _: with_network(without_network(state, NET.id), NET),
    Event.RESTART: lambda state, _: after_restart(decode(encode(state))),
    Event.VANISHED: lambda state, id_: with_doubt(state, [id_]),
    Event.FORGOTTEN: lambda state, id_: without_doubtful(state, [id_]),
    Event.ADDRESS_TAKEN: lambda state, id_: with_endpoint(state, replace(endpoint(id_), id=RIVAL)),
}
"""The transition by which each event happens to an endpoint."""
RENEWING = (Event.CREATE, Event.JOIN, Event.NETWORK_GONE, Event.RESTART, Event.ADDRESS_TAKEN)
"""They change more than the endpoint's life."""


def living(life: Life) -> State:
    """A host with one endpoint that is at this point of its life."""
    if life.phase is None:
        return EMPTY
    return replace(
        EMPTY,
        endpoints={ONE: replace(endpoint(ONE), phase=life.phase)},
        joining={ONE: "a Join"} if life.joining else {},
        doubtful=frozenset({ONE, NET.id} if life.doubtful else ()),
    )


def _written() -> tuple[dict[str, list[str]], list[str]]:
    """The rows of the docstring's table, and its columns."""
    lines = [line.split() for line in (module.__doc__ or "").splitlines() if line.startswith("    ")]
    columns, *rows = [[" ".join(line[:-8]), *line[-8:]] if len(line) >= 8 else line for line in lines]
    return {row[0]: row[1:] for row in rows if row}, columns[1:]


def _word(life: Life, after: Life | None) -> str:
    return "-" if after is life else _name(after) if after else "refused"


def _name(life: Life) -> str:
    return life.name.lower().replace("_doubtful", "?")


def test_every_pair_is_in_the_table_but_a_join_of_nobody() -> None:
    assert {(life, event) for life, event in PAIRS if life not in LIVES[event]} == REFUSED


def test_the_table_that_people_read_is_the_one_that_counts() -> None:
    rows, columns = _written()
    assert columns == [_name(life) for life in Life]
    for event in Event:
        assert rows.pop(event.name) == [_word(life, LIVES[event].get(life)) for life in Life]
    yes = {True: "yes", False: "no"}
    assert rows.pop("on disk as") == [life.phase.value if life.phase else "-" for life in Life]
    assert rows.pop("receives") == [yes[life.receives] for life in Life]
    assert rows.pop("has a port") == [yes[life.has_port] for life in Life]
    assert rows == {}


def test_every_life_can_come_to_pass() -> None:
    found, before = {Life.ABSENT}, set[Life]()
    while found != before:
        before = found
        found = found | {row[life] for row in LIVES.values() for life in found if life in row}
    assert found == set(Life)


@pytest.mark.parametrize(("life", "event"), PAIRS)
def test_the_state_goes_by_the_table(life: Life, event: Event) -> None:
    state = living(life)
    assert state.life(ONE) is life
    if (life, event) in REFUSED:
        with pytest.raises(NotFound):
            HAPPEN[event](state, ONE)
    else:
        assert HAPPEN[event](state, ONE).life(ONE) is LIVES[event][life]


@pytest.mark.parametrize("life", Life)
def test_what_a_life_says_is_what_kernel_and_others_are_told(life: Life) -> None:
    state = living(life)
    ports = [obj for obj in desired(state, NET.id).values() if isinstance(obj, Port)]
    assert [port.create for port in ports] == ([life.joining] if life.has_port else [])
    assert [e.id for e in state.present(NET.id)] == ([ONE] if life.has_port else [])
    assert {record.endpoint for record in publication(state).endpoints} == ({ONE} if life.receives else set())
    assert (state.holder(NET.id, ip_address(ADDRESSES[ONE])) is not None) == life.receives


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Event), st.sampled_from((ONE, TWIN, OTHER))), max_size=40))
def test_endpoints_beside_each_other_go_by_the_table(events: list[tuple[Event, EndpointId]]) -> None:
    state, lives = EMPTY, dict.fromkeys(ADDRESSES, Life.ABSENT)
    for event, id_ in events:
        if (lives[id_], event) in REFUSED or event is Event.ADDRESS_TAKEN:
            continue
        if event is Event.CREATE:
            rivals = [r for r in ADDRESSES if r != id_ and ADDRESSES[r] == ADDRESSES[id_]]
            lives |= {rival: LIVES[Event.ADDRESS_TAKEN][lives[rival]] for rival in rivals}
        everybody = event in (Event.RESTART, Event.NETWORK_GONE)
        lives |= {e: LIVES[event][lives[e]] for e in (ADDRESSES if everybody else [id_])}
        state = HAPPEN[event](state, id_)
        assert {e: state.life(e) for e in ADDRESSES} == lives
        if NET.id in state.doubtful:
            assert all(lives[e].doubtful for e in state.endpoints), "who lives has a network that does"
        ports = {k.name for k, o in desired(state, NET.id).items() if isinstance(o, Port)}
        assert ports == {port_name(e) for e, life in lives.items() if life.has_port}


def test_only_the_join_that_waits_may_end_the_joining() -> None:
    older, newer = object(), object()
    state = with_endpoint(EMPTY, endpoint(ONE))
    state = with_join(with_join(state, NET.id, ONE, "/old", older), NET.id, ONE, "/new", newer)
    assert with_join_answered(state, ONE, older) is with_join_undone(state, ONE, older) is state
    assert with_join_answered(state, ONE, newer).life(ONE) is Life.JOINED
    assert with_join_undone(state, ONE, newer).life(ONE) is Life.CREATED


def test_what_changes_nothing_leaves_the_very_endpoints() -> None:
    for life, event in PAIRS:
        state = living(life)
        if LIVES[event].get(life) is life and event not in RENEWING:
            assert HAPPEN[event](state, ONE) == state
            assert HAPPEN[event](state, ONE).endpoints is state.endpoints
