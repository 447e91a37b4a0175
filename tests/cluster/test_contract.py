"""What every back end promises: one suite, on the store in memory and on a real etcd."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from driver.cluster.ledger.codec import encode_endpoint, encode_node, node_key
from driver.wish.records import Publication
from driver.wish.values import EndpointId, NetworkId, NodeId
from tests.cluster.conftest import MakeHost
from tests.cluster.harness import NET, NET2, Bench, endpoint, key_of, node, service, wait_until

E1, E2 = endpoint("a", 1), endpoint("b", 2)
S1, S2 = service(1, 11, 12), service(2)


def test_what_one_host_publishes_the_other_sees(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    b.join(E2)
    a.join(E1)
    assert a.published()
    wait_until(lambda: b.sees(E1) and a.sees(E2))
    wait_until(lambda: b.view.nodes.get(NodeId("a")) == node("a"))
    assert b.view.connected
    wait_until(lambda: b.sees(E2))  # own records are included


def test_a_network_followed_later_is_read_whole(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    other = endpoint("a", 7, NET2)
    a.join(E1, other, networks=(NET, NET2))
    b.join()
    assert a.published()
    wait_until(lambda: b.sees(E1))
    assert NET2 not in b.view.endpoints
    b.publish(networks=frozenset({NET, NET2}))
    assert b.plane.wait_published(2)
    assert b.sees(other), "wait_published means that the view was given"
    later = endpoint("a", 8, NET2)
    a.join(E1, other, later, networks=(NET, NET2))
    wait_until(lambda: b.sees(later))


def test_an_unfollowed_network_leaves_the_view_and_may_come_back(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join(networks=(NET, NET2))
    wait_until(lambda: b.sees(E1) and NET2 in b.view.endpoints)
    b.publish(networks=frozenset({NET2}))
    a.join()
    wait_until(lambda: a.sees_none(E1))
    assert NET not in b.view.endpoints or b.sees(E1)
    b.publish(networks=frozenset({NET, NET2}))
    wait_until(lambda: b.sees_none(E1))
    a.join(E1)
    wait_until(lambda: b.sees(E1))


def test_an_empty_network_is_read_too(host: MakeHost) -> None:
    a = host("a")
    a.join(networks=(NET, NET2))
    assert a.published()
    assert a.view.endpoints.keys() == {NET, NET2}


def test_a_withdrawn_record_goes(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join()
    wait_until(lambda: b.sees(E1))
    a.join()
    assert a.published()
    wait_until(lambda: b.sees_none(E1))
    assert key_of(E1) not in bench.dump()


def test_a_changed_record_is_replaced(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join()
    wait_until(lambda: b.sees(E1))
    changed = replace(E1, endpoint=EndpointId("another"))
    a.join(changed)
    wait_until(lambda: b.sees(changed))


def test_endpoint_and_network_withdrawn_at_once(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    a.join(networks=())
    assert a.published()
    assert key_of(E1) not in bench.dump()


def test_endpoints_of_a_network_that_is_not_followed(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1, networks=())
    assert a.published()
    assert key_of(E1) in bench.dump()
    assert NET not in a.view.endpoints
    bench.delete(key_of(E1))
    wait_until(lambda: key_of(E1) in bench.dump())


def test_the_later_claim_wins_and_the_loser_is_restored(bench: Bench, host: MakeHost) -> None:
    a, b, c = host("a"), host("b"), host("c")
    c.join()
    mine, theirs = E1, replace(E1, node=NodeId("b"), endpoint=EndpointId("theirs"))
    a.join(mine)
    wait_until(lambda: c.sees(mine))
    b.join(theirs)
    assert b.published()
    wait_until(lambda: c.sees(theirs))
    time.sleep(0.1)
    assert c.sees(theirs), "the loser does not fight"
    assert a.plane.wait_published(1), "to have yielded is to agree"
    b.join()
    wait_until(lambda: c.sees(mine))
    assert bench.dump()[key_of(mine)] == encode_endpoint(mine)


def test_a_loser_that_withdraws_leaves_the_winner_alone(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    theirs = replace(E1, node=NodeId("b"))
    a.join(E1)
    assert a.published()
    b.join(theirs)
    wait_until(lambda: a.sees(theirs))
    a.join()
    assert a.published()
    assert bench.dump()[key_of(E1)] == encode_endpoint(theirs)


def test_an_overwritten_record_is_restored_when_the_other_is_gone(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    foreign = replace(E1, node=NodeId("x"))
    bench.put(key_of(E1), encode_endpoint(foreign))
    wait_until(lambda: a.sees(foreign))
    bench.delete(key_of(E1))
    wait_until(lambda: a.sees(E1))


def test_a_lost_record_is_put_again(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    for key in (key_of(E1), node_key(NodeId("a"))):
        bench.delete(key)
        wait_until(lambda key=key: key in bench.dump())  # type: ignore[misc]
    wait_until(lambda: a.sees(E1) and a.view.nodes)


def test_records_of_an_earlier_life_are_adopted_or_withdrawn(bench: Bench, host: MakeHost) -> None:
    stale, kept = endpoint("a", 8), endpoint("a", 9)
    for record in (stale, kept, E2):
        bench.put(key_of(record), encode_endpoint(record))
    a = host("a")
    time.sleep(0.2)
    assert key_of(stale) in bench.dump(), "before the first wish nothing is withdrawn"
    a.join(kept)
    assert a.published()
    assert bench.dump().keys() == {key_of(kept), key_of(E2), node_key(NodeId("a"))}


def test_the_node_record_comes_after_the_endpoints(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    b.join()
    assert b.published()
    endpoints = [endpoint("a", i) for i in range(400)]
    a.join(*endpoints)
    wait_until(lambda: len(b.rows()) == 400 and NodeId("a") in b.view.nodes)
    for view in b.views:
        assert NodeId("a") not in view.nodes or len(view.endpoints[NET]) == 400
    assert len(bench.dump()) == 402


def test_no_node_record_without_an_address(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.publish(endpoints=frozenset({E1}), networks=frozenset({NET}))
    assert a.published()
    assert bench.dump().keys() == {key_of(E1)}
    a.publish(node=node("a"))
    assert a.published()
    assert node_key(NodeId("a")) in bench.dump()
    a.publish(node=node("a", 9))
    assert a.published()
    wait_until(lambda: a.view.nodes[NodeId("a")] == node("a", 9))
    a.publish(node=None)
    assert a.published()
    assert node_key(NodeId("a")) not in bench.dump()


def test_while_the_store_is_away_the_view_is_frozen(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1) and len(a.view.nodes) == 2)
    before = a.view
    bench.away(True)
    wait_until(lambda: not a.view.connected and not b.view.connected)
    assert (a.view.nodes, a.view.endpoints) == (before.nodes, before.endpoints)
    told = len(a.views)
    new = endpoint("b", 5)
    b.join(new)
    start = time.monotonic()
    assert not b.plane.wait_published(5)
    assert time.monotonic() - start < 0.5, "waiting would help nobody"
    time.sleep(0.3)
    assert len(a.views) == told, "told once"
    bench.away(False)
    wait_until(lambda: a.view.connected and a.sees(new) and a.sees_none(E2))
    assert b.published()


def test_what_did_not_change_while_away_is_the_same_object(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1, networks=(NET, NET2))
    assert a.published()
    wait_until(lambda: a.sees(E1))
    before = a.view
    bench.away(True)
    wait_until(lambda: not a.view.connected)
    bench.away(False)
    wait_until(lambda: a.view.connected)
    assert a.view.endpoints[NET] is before.endpoints[NET]
    assert a.view.endpoints[NET2] is before.endpoints[NET2]


def test_a_change_replaces_the_map_of_its_network_only(host: MakeHost) -> None:
    a = host("a")
    a.join(E1, networks=(NET, NET2))
    assert a.published()
    wait_until(lambda: a.sees(E1) and a.view.nodes)
    before = a.view
    a.join(E1, endpoint("a", 3), networks=(NET, NET2))
    wait_until(lambda: len(a.rows()) == 2)
    assert a.view.endpoints[NET2] is before.endpoints[NET2]
    assert a.view.nodes is before.nodes
    assert len(before.endpoints[NET]) == 1, "a view that was given never changes"


def test_a_network_followed_while_away_is_read_on_return(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join(networks=())
    assert a.published()
    assert b.published()
    bench.away(True)
    wait_until(lambda: not b.view.connected)
    b.join()
    time.sleep(0.1)
    assert NET not in b.view.endpoints
    bench.away(False)
    wait_until(lambda: b.sees(E1))


def test_a_new_and_empty_store_is_filled_again(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(E1)
    b.join(E2)
    wait_until(lambda: a.sees(E2) and b.sees(E1) and len(b.view.nodes) == 2)
    bench.replace()
    wait_until(lambda: len(bench.dump()) == 4)
    wait_until(lambda: a.view.connected and a.sees(E2) and b.sees(E1) and len(b.view.nodes) == 2)
    assert a.published()


def test_on_a_new_store_a_conflict_ends_as_before(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    theirs = replace(E1, node=NodeId("b"))
    a.join(E1)
    assert a.published()
    b.join(theirs)
    wait_until(lambda: a.sees(theirs))
    bench.replace()
    wait_until(lambda: bench.dump().get(key_of(E1)) == encode_endpoint(theirs))
    assert a.published()
    assert b.published()
    assert bench.dump()[key_of(E1)] == encode_endpoint(theirs)


def test_records_that_cannot_be_read_are_skipped(
    bench: Bench, host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    a = host("a")
    a.join()
    assert a.published()
    start = key_of(E1).rpartition("/")[0]
    for key, value in {
        f"{start}/10.0.0.99": "no JSON",
        f"{start}/10.0.0.98": '{"node":"x"}',
        f"{start}/10.0.0.97": '["a list"]',
        f"{start}/here": encode_endpoint(E1),
        f"{start}/": encode_endpoint(E1),
        f"{start}/10.0.0.96/x": encode_endpoint(E1),
        node_key(NodeId("x")): '{"vtep":"nowhere"}',
        node_key(NodeId("z")): '{"vtep":"127.0.0.1"}',
        node_key(NodeId("y")): '{"vtep":"192.0.2.9","from":"a later version"}',
    }.items():
        bench.put(key, value)
        bench.put(key, value)
    bench.put(key_of(E2), encode_endpoint(E2).replace("{", '{"later":1,'))
    wait_until(lambda: a.sees(E2) and NodeId("y") in a.view.nodes)
    assert len(a.rows()) == 1
    assert not {NodeId("x"), NodeId("z")} & a.view.nodes.keys()
    assert sum("10.0.0.99" in r.message for r in caplog.records) == 1


def test_a_thousand_records_at_once(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    b.join()
    assert b.published()
    endpoints = [endpoint("a", i) for i in range(1000)]
    a.join(*endpoints)
    assert a.published()
    wait_until(lambda: len(b.rows()) == 1000)
    a.join()
    assert a.published()
    wait_until(lambda: not b.rows())


def test_many_networks(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    networks = [NetworkId(f"net{i}") for i in range(250)]
    a.join(*(endpoint("a", i, n) for i, n in enumerate(networks)), networks=networks)
    assert a.published()
    b.join(networks=networks)
    assert b.published()
    assert all(len(b.rows(network)) == 1 for network in networks)


def test_quick_changes_end_in_the_last_wish(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    b.join()
    for i in range(100):
        a.join(*(endpoint("a", n) for n in range(i % 7)))
    a.join(E1)
    assert a.published()
    wait_until(lambda: list(b.rows().values()) == [E1])
    time.sleep(0.1)
    assert bench.dump().keys() == {key_of(E1), node_key(NodeId("a")), node_key(NodeId("b"))}


def test_leaving_takes_everything_along(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    a.join(*(endpoint("a", i) for i in range(300)))
    b.join(E2)
    assert a.published()
    assert b.published()
    start = time.monotonic()
    a.plane.stop(leave=True)
    assert time.monotonic() - start < 9
    wait_until(lambda: list(b.rows().values()) == [E2] and NodeId("a") not in b.view.nodes)
    assert bench.dump().keys() == {key_of(E2), node_key(NodeId("b"))}


def test_stopping_without_leaving_leaves_everything(bench: Bench, host: MakeHost) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    threads = {t.name for t in threading.enumerate() if t.name.startswith("store-")}
    assert threads
    a.plane.stop(leave=False)
    told = len(a.views)
    assert not [t for t in threading.enumerate() if t.name.startswith("store-")]
    assert bench.dump().keys() == {key_of(E1), node_key(NodeId("a"))}
    again = host("a")
    again.join(E1)
    assert again.published()
    again.plane.stop(leave=True)
    assert bench.dump() == {}
    assert len(a.views) == told


def test_what_was_said_last_is_in_the_store_after_a_stop(bench: Bench, host: MakeHost) -> None:
    """Else the others would send to containers that have ended for as long as we are away."""
    a = host("a")
    a.join(*(endpoint("a", i) for i in range(500)))
    assert a.published()
    new = endpoint("a", 600)
    a.join(new)
    a.plane.stop(leave=False)
    assert bench.dump() == {
        key_of(new): encode_endpoint(new),
        node_key(NodeId("a")): encode_node(node("a")),
    }


@pytest.mark.parametrize("leave", [True, False])
def test_stopping_while_the_store_is_away_is_quick(bench: Bench, host: MakeHost, leave: bool) -> None:
    a = host("a")
    a.join(E1)
    assert a.published()
    bench.away(True)
    wait_until(lambda: not a.view.connected)
    start = time.monotonic()
    a.plane.stop(leave=leave)
    assert time.monotonic() - start < 9


def test_a_plane_that_never_started_can_be_stopped(bench: Bench) -> None:
    plane = bench.plane("a")
    plane.publish(Publication())
    assert not plane.wait_published(0.05)
    plane.stop(leave=True)


def test_views_come_from_one_thread(bench: Bench, host: MakeHost) -> None:
    a, b = host("a"), host("b")
    for i in range(20):
        b.join(*(endpoint("b", n) for n in range(i)))
        a.join(*(endpoint("a", n + 100) for n in range(i)), networks=(NET, NET2)[: i % 2 + 1])
    bench.away(True)
    bench.away(False)
    assert a.published()
    assert len(a.threads) == 1


def test_a_user_that_fails_does_not_end_the_service(bench: Bench) -> None:
    plane = bench.plane("a")
    calls = []

    def fail(view: object) -> None:
        calls.append(view)
        raise ValueError("the user's fault")

    plane.start(fail)
    plane.publish(Publication(node("a"), frozenset({E1}), frozenset({NET})))
    wait_until(lambda: plane.wait_published(1))
    assert len(calls) >= 1
    plane.stop(leave=True)
    assert bench.dump() == {}


class TestServices:
    """What the Swarm's leader says of services."""

    def test_all_who_follow_the_network_hear_of_it(self, bench: Bench, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        assert b.published()
        assert b.services() is None, "nobody has said anything"
        a.join(networks=())
        a.lead(S1, S2, service(3, 13, network=NET2), networks=(NET, NET2))
        assert a.published()
        wait_until(lambda: b.services() == {S1, S2})
        assert NET2 not in b.view.services
        b.publish(networks=frozenset({NET, NET2}))
        assert b.plane.wait_published(2)
        wait_until(lambda: b.services(NET2) == {service(3, 13, network=NET2)})
        changed = service(1, 12, 13)
        a.lead(changed, networks=(NET, NET2))
        wait_until(lambda: b.services() == {changed})
        wait_until(lambda: b.services(NET2) == set())

    def test_it_is_told_whole_or_not_at_all(self, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        assert b.published()
        many = [service(number, 1, 2, 3) for number in range(1, 251)]
        a.lead(*many)
        assert a.published()
        wait_until(lambda: b.services() == set(many))
        assert all(len(view.services.get(NET, many)) == 250 for view in b.views)

    def test_a_new_and_empty_store_says_nothing_until_the_leader_has(
        self, bench: Bench, host: MakeHost
    ) -> None:
        a, b = host("a"), host("b")
        for one in (a, b):
            one.join()
        a.lead(S1)
        wait_until(lambda: b.services() == {S1})
        bench.replace()
        a.publish(offer=None)
        c = host("c")
        c.join()
        c.lead(S1, S2)
        wait_until(lambda: b.services() == {S1, S2})
        assert all(view.services.get(NET) != {} for view in b.views)

    def test_a_new_leader_takes_over_in_one_step(self, bench: Bench, host: MakeHost) -> None:
        """On a store that outlives leaders: nobody sees a mixture, or nothing."""
        a, b, c = host("a"), host("b"), host("c")
        c.join()
        a.lead(S1, S2)
        wait_until(lambda: c.services() == {S1, S2})
        b.lead(S1)
        wait_until(lambda: c.services() == {S1})
        assert a.plane.wait_published(2), "to have yielded is to agree"
        assert b.published()
        a.lead(networks=())
        assert a.published()
        time.sleep(0.1)
        assert c.services() == {S1}
        told = [set(view.services[NET].values()) for view in c.views if NET in view.services]
        assert all(one in ({S1, S2}, {S1}) for one in told), told
        assert not [key for key in bench.dump() if "/services/" in key and "/a/" in key]

    def test_a_leader_that_resigns_leaves_silence_not_emptiness(self, bench: Bench, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        a.lead(S1, S2)
        wait_until(lambda: b.services() == {S1, S2})
        a.lead(networks=())
        wait_until(lambda: b.services() is None)
        assert a.published()
        assert not [key for key in bench.dump() if "/services/" in key]
        told = [set(view.services[NET].values()) for view in b.views if NET in view.services]
        assert all(one == {S1, S2} for one in told), told

    def test_who_does_not_know_yet_leaves_what_is_there(self, bench: Bench, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        a.lead(S1)
        wait_until(lambda: b.services() == {S1})
        a.plane.stop(leave=False)
        again = host("a")
        again.publish(node=node("a"), offer=None)
        assert again.published()
        time.sleep(0.1)
        assert b.services() == {S1}
        again.lead(S2)
        wait_until(lambda: b.services() == {S2})

    def test_lost_records_are_put_again(self, bench: Bench, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        a.lead(S1)
        wait_until(lambda: b.services() == {S1})
        for key in [key for key in bench.dump() if "/services/" in key]:
            bench.delete(key)
            wait_until(lambda key=key: key in bench.dump())  # type: ignore[misc]
        wait_until(lambda: b.services() == {S1})

    def test_what_cannot_be_read_is_skipped(self, bench: Bench, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join()
        a.lead(S1)
        wait_until(lambda: b.services() == {S1})
        start = "/pyoverlay/v1/services/n1"
        bench.put(f"{start}/a/10.0.9.77", "no JSON")
        bench.put(f"{start}/a/here", '{"name":"x","backends":[]}')
        bench.put(f"{start}/a/10.0.9.78", '{"name":"x","backends":["nowhere"]}')
        bench.put(f"{start}/later", '{"new":1}')
        a.lead(S1, S2)
        wait_until(lambda: b.services() == {S1, S2})

    def test_what_did_not_change_is_the_same_object(self, host: MakeHost) -> None:
        a, b = host("a"), host("b")
        b.join(networks=(NET, NET2))
        a.lead(S1, service(3, 1, network=NET2), networks=(NET, NET2))
        wait_until(lambda: b.services() == {S1} and b.services(NET2))
        before = b.view
        a.lead(S1, S2, service(3, 1, network=NET2), networks=(NET, NET2))
        wait_until(lambda: b.services() == {S1, S2})
        assert b.view.services[NET2] is before.services[NET2]
        assert set(before.services[NET].values()) == {S1}
