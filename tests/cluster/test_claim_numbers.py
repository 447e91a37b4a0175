"""Whose claim of an address counts, whatever the clocks say: schedules of all that can come between.

Hosts claim one address, are cut off and come back, lose the store to a new leader's, and start again. In the
end nobody who still has it has lost it to a claim that was known when the own one was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface

from hypothesis import given, settings
from hypothesis import strategies as st

from driver.cluster.ledger.claims import Claim
from driver.cluster.ledger.codec import NODES, decode_endpoint
from driver.cluster.ledger.ledger import Ledger
from driver.cluster.memory import MemoryStore
from driver.wish.model import Endpoint, Host
from driver.wish.peers import merge
from driver.wish.records import EndpointRecord, NodeRecord, Publication, View
from driver.wish.state import State, claim_number
from driver.wish.values import EndpointId, NodeId
from tests.cluster.harness import NET, endpoint, key_of, node

BASE = endpoint("a", 1)
KEY = key_of(BASE)
HOSTS = 3
NUMBERED: Callable[[State, int], int] = claim_number


def by_clock(_: State, now: int) -> int:
    """What the version before wrote."""
    return now


def unnumbered(_: State, now: int) -> int:
    """What 6be4165 wrote."""
    return 0


class Simulated:
    """A host as far as claims go: its state, what it says, and its clock."""

    def __init__(
        self, number: int, skew: int, numbered: Callable[[State, int], int], store: MemoryStore
    ) -> None:
        self.name = f"h{number}"
        self.id = NodeId(self.name)
        self.record = node(self.name, number + 1)
        self._skew = skew
        self._numbered = numbered
        self._store = store
        self.state = State(Host(self.id))
        self.made = 0
        self.cut = False
        self.seen: set[tuple[str, int]] = set()
        """The claims that it has heard of since it started."""
        self.begin()

    def begin(self) -> None:
        """Start a process: what is on disk is its own endpoints alone."""
        self.state = State(self.state.host, endpoints=self.state.endpoints)
        self.ledger = Ledger(self.id)
        self.generation = self._store.generation
        self.seen = {(self.name, self.made)} if self.state.endpoints else set()
        self._say()

    def claim(self, now: int) -> set[tuple[str, int]]:
        """Make a container with the address; return what this claim is later than."""
        self.made += 1
        id_ = EndpointId(f"{self.name}e{self.made}")
        number = self._numbered(self.state, now + self._skew)
        made = Endpoint(id_, NET, (ip_interface(f"{BASE.address}/16"),), BASE.mac, claimed=number)
        self.state = replace(self.state, endpoints={id_: made})
        earlier = set(self.seen)
        self.seen.add((self.name, self.made))
        self._say()
        return earlier

    def release(self) -> None:
        self.state = replace(self.state, endpoints={})
        self._say()

    def sync(self) -> None:
        """Read, write and read, as long as the store can be reached."""
        if self.cut:
            return
        if self.generation != self._store.generation:
            self.generation = self._store.generation
            self.ledger.restart()
        self._read()
        while claims := self.ledger.pending(10):
            for one in claims:
                self.ledger.answered(one, *self._store.do(one))
        last: Claim | None = self.ledger.pending_node(1)
        if last is not None:
            _, revision = self._store.do(last)
            self.ledger.answered_node(last, 1, revision)
        self._read()

    def _read(self) -> None:
        for scope in (NODES, *self.ledger.followed()):
            entries, revision = self._store.read_scope(scope)
            self.ledger.load_scope(scope, entries, revision)
        view: View = self.ledger.view(connected=True)
        self.state = replace(self.state, peers=merge(self.state.peers, view, self.id, [NET], 0.0))
        for record in view.endpoints[NET].values():
            self.seen.add(named(record))

    def _say(self) -> None:
        records = frozenset(
            EndpointRecord(NET, BASE.address, e.mac, self.id, e.id, e.claimed)
            for e in self.state.endpoints.values()
        )
        self.ledger.set_publication(
            Publication(NodeRecord(self.id, self.record.vtep), records, frozenset([NET]))
        )


def named(record: EndpointRecord) -> tuple[str, int]:
    host, _, number = record.endpoint.partition("e")
    return host, int(number)


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "sync", "sync", "cut", "mend", "new store", "restart", "release"]),
        st.integers(0, HOSTS - 1),
    ),
    min_size=15,
    max_size=40,
)
SKEWS = st.lists(st.integers(-100_000, 100_000), min_size=HOSTS, max_size=HOSTS)


class World:
    def __init__(self, skews: list[int], numbered: list[Callable[[State, int], int]]) -> None:
        self.store = MemoryStore()
        kinds = zip(skews, numbered, strict=True)
        self.hosts = [Simulated(i, skew, kind, self.store) for i, (skew, kind) in enumerate(kinds)]
        self.later: dict[tuple[str, int], set[tuple[str, int]]] = {}
        """By claim: the ones that it is later than."""
        self.now = 1_000_000

    def play(self, steps: list[Step]) -> None:
        for name, number in steps:
            self.now += 10
            self._do(name, self.hosts[number % len(self.hosts)])

    def _do(self, name: str, host: Simulated) -> None:
        match name:
            case "claim":
                earlier = host.claim(self.now)
                self.later[host.name, host.made] = earlier
            case "sync":
                host.sync()
            case "cut" | "mend":
                host.cut = name == "cut"
            case "new store":
                self.store.replace()
            case "restart":
                host.begin()
            case "release":
                host.release()

    def settle(self) -> None:
        """Have all reach the store, more often than it takes."""
        for host in self.hosts * 4:
            host.cut = False
            host.sync()

    def holder(self) -> tuple[str, int] | None:
        value = self.store.dump().get(KEY)
        return None if value is None else named(decode_endpoint(KEY, value))

    def standing(self) -> set[tuple[str, int]]:
        """The claims that have not been given up."""
        return {(h.name, h.made) for h in self.hosts if h.state.endpoints}

    def agreed(self) -> bool:
        """Tell whether nobody has anything left to say, and all see the same."""
        views = [h.ledger.view(connected=True).endpoints[NET] for h in self.hosts]
        return all(h.ledger.published(1) for h in self.hosts) and all(view == views[0] for view in views)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(STEPS, SKEWS)
def test_nobody_loses_to_a_claim_that_the_later_one_had_seen(steps: list[Step], skews: list[int]) -> None:
    """Of two. A third one, made while its host was away from every store, may come between (ADR 17)."""
    world = World(skews[:2], [NUMBERED] * 2)
    world.play(steps)
    world.settle()
    standing, holder = world.standing(), world.holder()
    assert world.agreed()
    assert (holder in standing) if standing else holder is None
    assert not [one for one in standing if holder in world.later[one]], "a later claim has lost"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS, SKEWS, st.permutations([NUMBERED, by_clock, unnumbered]) | st.just([NUMBERED] * HOSTS))
def test_hosts_of_three_versions_agree(
    steps: list[Step], skews: list[int], kinds: list[Callable[[State, int], int]]
) -> None:
    world = World(skews, kinds)
    world.play(steps)
    world.settle()
    standing, holder = world.standing(), world.holder()
    assert world.agreed()
    assert (holder in standing) if standing else holder is None


def test_a_clock_that_is_behind_costs_nobody_an_address() -> None:
    """The second host's clock is behind; the first one was away when its address was given to it."""
    world = World([0, -50_000, 0], [NUMBERED] * HOSTS)
    world.play(
        [
            ("claim", 0),
            ("sync", 0),
            ("sync", 1),
            ("cut", 0),
            ("claim", 1),
            ("sync", 1),
            ("new store", 0),
            ("sync", 1),
        ]
    )
    world.settle()
    assert world.holder() == ("h1", 1)
