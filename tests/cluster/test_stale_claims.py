"""Who has an address on a store that is new: whoever claimed it last, not whoever comes last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest

from driver.cluster.ledger.claims import Claims, Put
from driver.cluster.ledger.codec import (
    claimed_at,
    decode_endpoint,
    encode_endpoint,
    endpoints_of,
)
from driver.cluster.ledger.table import Entry
from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.wish.records import EndpointRecord
from driver.wish.values import EndpointId, NodeId
from tests.cluster.harness import NET, Host, endpoint, key_of, wait_until

BASE = endpoint("a", 1)
KEY = key_of(BASE)


def claim(owner: str, claimed: int) -> EndpointRecord:
    return replace(BASE, node=NodeId(owner), endpoint=EndpointId(f"{owner}e"), claimed=claimed)


EARLY, LATE = claim("a", 1_000), claim("b", 2_000)


class Pair:
    """Two hosts, a and b, on one store in memory; each can be cut off by itself."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.planes = {name: MemoryControlPlane(NodeId(name), self.store) for name in "ab"}
        self.hosts = {name: Host(name, plane).start() for name, plane in self.planes.items()}

    def cut(self, name: str, cut: bool) -> None:
        self.planes[name].cut(cut)
        wait_until(lambda: self.hosts[name].view.connected is not cut)

    def restart(self, name: str) -> None:
        """A new process on that host, cut off as yet."""
        self.planes[name].stop(leave=False)
        self.planes[name] = MemoryControlPlane(NodeId(name), self.store)
        self.planes[name].cut(True)
        self.hosts[name] = Host(name, self.planes[name]).start()

    def holder(self) -> NodeId:
        return decode_endpoint(KEY, self.store.dump()[KEY]).node

    def settle(self) -> None:
        for host in self.hosts.values():
            assert host.published()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for plane in made.planes.values():
        plane.stop(leave=False)


def moved_while_a_was_away(pair: Pair, early: EndpointRecord, late: EndpointRecord) -> None:
    """Let a claim the address, lose the store, and b claim it meanwhile."""
    pair.hosts["a"].join(early)
    pair.hosts["b"].join()
    pair.settle()
    pair.cut("a", True)
    pair.hosts["b"].join(late)
    assert pair.hosts["b"].published()


def test_who_comes_to_a_new_store_last_does_not_take_an_address_back(pair: Pair) -> None:
    moved_while_a_was_away(pair, EARLY, LATE)
    pair.store.replace()
    assert pair.hosts["b"].published()
    pair.cut("a", False)
    pair.settle()
    assert pair.holder() == "b"
    assert pair.hosts["a"].sees(LATE)


def test_who_claimed_it_last_gets_it_from_who_came_first(pair: Pair) -> None:
    moved_while_a_was_away(pair, EARLY, LATE)
    pair.cut("b", True)
    pair.store.replace()
    pair.cut("a", False)
    assert pair.hosts["a"].published()
    assert pair.holder() == "a"
    pair.cut("b", False)
    pair.settle()
    assert pair.holder() == "b"


def test_an_address_given_back_is_claimed_again_by_who_had_it(pair: Pair) -> None:
    moved_while_a_was_away(pair, EARLY, LATE)
    pair.store.replace()
    assert pair.hosts["b"].published()
    pair.cut("a", False)
    pair.settle()
    pair.hosts["b"].join()
    wait_until(lambda: KEY in pair.store.dump() and pair.holder() == "a")


@pytest.mark.parametrize("new_store", [False, True])
def test_a_restarted_process_does_not_take_an_address_back(pair: Pair, new_store: bool) -> None:
    moved_while_a_was_away(pair, EARLY, LATE)
    pair.restart("a")
    if new_store:
        pair.store.replace()
        assert pair.hosts["b"].published()
    pair.hosts["a"].join(EARLY)
    pair.cut("a", False)
    pair.settle()
    assert pair.holder() == "b"


def test_what_is_claimed_now_is_had_whatever_the_clocks_say(pair: Pair) -> None:
    """On one store the order of its revisions counts: a clock that is behind costs nobody an address."""
    pair.hosts["a"].join(claim("a", 9_000))
    pair.hosts["b"].join()
    pair.settle()
    pair.hosts["b"].join(LATE)
    pair.settle()
    assert pair.holder() == "b"


def test_a_host_of_the_former_version_is_served_as_before(pair: Pair) -> None:
    """Its records say nothing of when: it comes last, and gets its address back."""
    moved_while_a_was_away(pair, claim("a", 0), claim("b", 0))
    pair.store.replace()
    assert pair.hosts["b"].published()
    pair.cut("a", False)
    pair.settle()
    assert pair.holder() == "a"


def test_a_claim_without_a_time_is_earlier_than_one_that_has_it(pair: Pair) -> None:
    moved_while_a_was_away(pair, claim("a", 0), LATE)
    pair.store.replace()
    assert pair.hosts["b"].published()
    pair.cut("a", False)
    pair.settle()
    assert pair.holder() == "b"


@pytest.mark.parametrize("order", list(permutations(["refused", "told"])))
def test_answer_and_news_may_come_in_either_order(order: list[str]) -> None:
    """The other's earlier claim arrives while ours asks whether the key is free."""
    claims = Claims(NodeId("b"))
    claims.set_wanted({KEY: encode_endpoint(LATE)})
    (asked,) = claims.pending(9)
    assert asked == Put(KEY, encode_endpoint(LATE), if_absent=True)
    for event in order:
        if event == "refused":
            claims.answered(asked, done=False, revision=5)
        else:
            claims.seen([Entry(KEY, encode_endpoint(EARLY), 5)])
    assert claims.pending(9) == [Put(KEY, encode_endpoint(LATE), if_absent=False)]


def test_a_refusal_that_is_out_of_date_does_not_end_a_new_claim() -> None:
    claims = Claims(NodeId("b"))
    claims.set_wanted({KEY: encode_endpoint(LATE)})
    (asked,) = claims.pending(9)
    newer = encode_endpoint(replace(LATE, endpoint=EndpointId("another"), claimed=3_000))
    claims.set_wanted({KEY: newer})
    claims.answered(asked, done=False, revision=5)
    assert claims.pending(9) == [Put(KEY, newer, if_absent=False)]


def test_a_whole_reading_decides_as_news_do() -> None:
    claims = Claims(NodeId("a"))
    claims.set_wanted({KEY: encode_endpoint(EARLY)})
    claims.load_scope(endpoints_of(NET), [Entry(KEY, encode_endpoint(LATE), 5)], 5)
    assert claims.settled()


def test_the_time_is_an_optional_field_both_ways() -> None:
    """A host of the former version writes records without it, and reads those that have it."""
    without = encode_endpoint(claim("a", 0))
    assert "claimed" not in without
    assert decode_endpoint(KEY, without).claimed == 0
    assert decode_endpoint(KEY, encode_endpoint(EARLY)) == EARLY


@pytest.mark.parametrize("odd", ['"1000"', "-5", "true", "1.5", "null", "[]", str(1 << 53)])
def test_a_time_that_is_none_does_not_make_a_record_unreadable(odd: str) -> None:
    value = encode_endpoint(EARLY).replace("1000", odd)
    assert decode_endpoint(KEY, value) == claim("a", 0)
    assert claimed_at(KEY, value) == 0
    assert claimed_at(KEY, "no JSON") == 0
