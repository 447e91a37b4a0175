"""A Join waits for its own records, and not until all is quiet."""

from __future__ import annotations

from driver.cluster.etcd.exchange import Exchange, Link
from driver.cluster.ledger.claims import Put
from driver.cluster.ledger.codec import NODES, encode_endpoint, endpoints_of, node_key, services_of
from driver.wish.records import Publication
from driver.wish.values import NetworkId, NodeId
from tests.cluster.conftest import MakeHost
from tests.cluster.harness import NET, NET2, Bench, endpoint, key_of, node, service, wait_until

E1, E2, BUSY = endpoint("a", 1), endpoint("b", 2), endpoint("a", 3)
LEASE = 7


def exchange() -> Exchange:
    """What a host shares with a store that has taken its node record, and read one of its two networks."""
    made = Exchange(NodeId("a"))
    made.link, made.lease = Link("http://store", None), LEASE
    made.publish(Publication(node("a"), frozenset(), frozenset({NET})))
    for scope in (NODES, endpoints_of(NET), services_of(NET)):
        made.ledger.load_scope(scope, [], 5)
    claim = made.ledger.pending_node(LEASE)
    assert claim is not None
    made.ledger.answered_node(claim, LEASE, 6)
    made.publish(Publication(node("a"), frozenset({E1, BUSY}), frozenset({NET, NET2})))
    made.told = made.ledger.view(connected=True)
    return made


def test_what_else_is_to_be_said_or_read_holds_nobody_up() -> None:
    shared = exchange()
    mine = shared.ledger.keys_of(E1.endpoint)
    assert mine == {key_of(E1)}
    assert not shared.announced(NET, mine)
    shared.ledger.answered(Put(key_of(E1), encode_endpoint(E1)), done=True, revision=7)
    assert shared.announced(NET, mine)
    assert not shared.announced(NET, shared.ledger.keys_of(BUSY.endpoint))
    assert not shared.settled()


def test_its_network_must_have_been_read() -> None:
    shared = exchange()
    assert not shared.announced(NET2, set())
    for scope in (endpoints_of(NET2), services_of(NET2)):
        shared.ledger.load_scope(scope, [], 8)
    assert not shared.announced(NET2, set()), "the user was not told yet"
    shared.told = shared.ledger.view(connected=True)
    assert shared.announced(NET2, set())


def test_without_the_node_record_nobody_would_believe_it() -> None:
    shared = exchange()
    shared.ledger.restart()
    shared.ledger.answered(Put(key_of(E1), encode_endpoint(E1)), done=True, revision=7)
    assert not shared.announced(NET, {key_of(E1)})


def test_who_has_waited_is_known_and_knows(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    b.join(E2)
    assert b.published()
    a.join(E1)
    wait_until(lambda: a.plane.wait_announced(NET, E1.endpoint, 2))
    assert bench.dump().keys() >= {key_of(E1), node_key(NodeId("a"))}
    assert a.sees(E2)


def test_a_network_that_is_not_followed_is_never_known(host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    assert not a.plane.wait_announced(NetworkId("other"), E1.endpoint, 0.05)


def test_while_the_store_is_away_nobody_waits(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    bench.away(True)
    wait_until(lambda: not a.view.connected)
    assert not a.plane.wait_announced(NET, E1.endpoint, 60)


def test_services_that_are_being_said_hold_no_join_up() -> None:
    shared = exchange()
    shared.publish(
        Publication(node("a"), frozenset({E1}), frozenset({NET}), {NET: frozenset({service(1, 11)})})
    )
    shared.ledger.answered(Put(key_of(E1), encode_endpoint(E1)), done=True, revision=7)
    assert shared.announced(NET, {key_of(E1)})
    assert shared.ledger.pending(9)
