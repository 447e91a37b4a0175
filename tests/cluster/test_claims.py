"""Claims against a model of a store that answers and tells late, in any order between the two."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from driver.cluster.ledger.claims import Claim, Claims, Put, Withdraw
from driver.cluster.ledger.codec import encode_endpoint, endpoints_of
from driver.cluster.ledger.table import Entry
from driver.wish.values import NodeId
from tests.cluster.harness import NET, endpoint, key_of

A, B = NodeId("a"), NodeId("b")
KEYS = [key_of(endpoint("a", i)) for i in range(3)]


def value(node: str, number: int, version: int = 0) -> str:
    text = encode_endpoint(endpoint(node, number))
    return text.replace(f"{node}e{number}", f"{node}e{number}v{version}")


class Store:
    """etcd as far as claims are concerned, with one queue of news per node."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.revision = 1
        self.news: dict[NodeId, deque[Entry]] = {A: deque(), B: deque()}

    def do(self, claim: Claim) -> tuple[bool, int]:
        there = self.data.get(claim.key)
        if isinstance(claim, Put):
            if claim.if_absent and there is not None:
                return False, self.revision
            self.set(claim.key, claim.value)
        else:
            if there != claim.value:
                return False, self.revision
            self.set(claim.key, None)
        return True, self.revision

    def set(self, key: str, text: str | None) -> None:
        self.revision += 1
        if text is None:
            self.data.pop(key, None)
        else:
            self.data[key] = text
        for queue in self.news.values():
            queue.append(Entry(key, text, self.revision))


class Node:
    """A node whose answers may be late and whose news are later or earlier than those."""

    def __init__(self, name: NodeId, store: Store) -> None:
        self.name = name
        self.store = store
        self.claims = Claims(name)
        self.answer: tuple[Claim, bool, int] | None = None
        self.connect()

    def connect(self) -> None:
        """Take a snapshot; answers that are on their way are lost."""
        self.answer = None
        self.store.news[self.name].clear()
        entries = [Entry(k, v, self.store.revision) for k, v in self.store.data.items()]
        self.claims.load_scope(endpoints_of(NET), entries, self.store.revision)

    def send(self) -> bool:
        if self.answer is None and (todo := self.claims.pending(1)):
            self.answer = (todo[0], *self.store.do(todo[0]))
            return True
        return False

    def receive(self) -> bool:
        if self.answer is None:
            return False
        self.claims.answered(*self.answer)
        self.answer = None
        return True

    def hear(self) -> bool:
        queue = self.store.news[self.name]
        if queue:
            self.claims.seen([queue.popleft()])
        return bool(queue)


STEPS = st.one_of(
    st.tuples(st.sampled_from(["send", "receive", "hear", "connect"]), st.sampled_from("ab"), st.just(0)),
    st.tuples(st.just("wish"), st.sampled_from("ab"), st.integers(0, 26)),
    st.tuples(st.sampled_from(["lose", "replace"]), st.just("a"), st.integers(0, 2)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_all_come_to_agree(steps: list[tuple[str, str, int]]) -> None:
    store = Store()
    nodes = {"a": Node(A, store), "b": Node(B, store)}
    wishes: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    for action, name, number in steps:
        node = nodes[name]
        if action == "wish":
            digits = [number // 3**i % 3 for i in range(3)]
            wishes[name] = {KEYS[i]: value(name, i, digit) for i, digit in enumerate(digits) if digit}
            node.claims.set_wanted(wishes[name])
        elif action == "lose":
            store.set(KEYS[number], None)
        elif action == "replace":
            store.data.clear()
            store.revision = 1
            for other in nodes.values():
                other.claims.restart()
                other.connect()
        else:
            getattr(node, action)()
    settle(nodes)
    for name, node in nodes.items():
        node.claims.set_wanted(wishes[name])
    settle(nodes)
    for key in KEYS:
        claimants = {wishes[name][key] for name in nodes if key in wishes[name]}
        assert (store.data.get(key) in claimants) if claimants else key not in store.data


def settle(nodes: dict[str, Node]) -> None:
    """Let everything arrive; it must come to rest by itself, without a fight."""
    for _ in range(200):
        moved = False
        for node in nodes.values():
            moved |= node.receive() | node.hear() | bool(node.store.news[node.name]) | node.send()
        if not moved and all(node.claims.settled() and node.answer is None for node in nodes.values()):
            return
    raise AssertionError("they do not come to rest")


def test_before_the_first_wish_nothing_is_done() -> None:
    claims = Claims(A)
    claims.load_scope(endpoints_of(NET), [Entry(KEYS[0], value("a", 0), 5)], 5)
    assert claims.settled()
    claims.set_wanted({})
    assert claims.pending(9) == [Withdraw(KEYS[0], value("a", 0))]


def test_a_first_claim_takes_the_address_and_a_lost_one_asks_first() -> None:
    claims = Claims(A)
    claims.set_wanted({KEYS[0]: value("a", 0)})
    (first,) = claims.pending(9)
    assert first == Put(KEYS[0], value("a", 0), if_absent=False)
    claims.answered(first, done=True, revision=3)
    claims.seen([Entry(KEYS[0], None, 4)])
    assert claims.pending(9) == [Put(KEYS[0], value("a", 0), if_absent=True)]


def test_old_news_are_no_news() -> None:
    claims = Claims(A)
    claims.set_wanted({KEYS[0]: value("a", 0)})
    (first,) = claims.pending(9)
    claims.answered(first, done=True, revision=7)
    claims.seen([Entry(KEYS[0], value("b", 0), 6)])
    assert claims.settled()
    claims.load_scope(endpoints_of(NET), [], 6)
    assert claims.settled()
    claims.seen([Entry(KEYS[0], value("b", 0), 8)])
    assert claims.settled()
    claims.seen([Entry(KEYS[0], None, 9)])
    assert not claims.settled()
