"""The part of a network that a change concerns is enough to know which rows change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.cluster.memory import MemoryStore
from driver.kernel.kinds import FLOOD_MAC, FdbEntry, Row, Shortcut, Vxlan
from driver.kernel.objects import KernelState
from driver.kernel.ops import Delete, Set
from driver.reconcile.desired import FALLBACK_UNDERLAY, desired
from driver.reconcile.part import Part, changed_part, changed_rows, narrowed
from driver.wish.errors import KernelError
from driver.wish.model import Endpoint, Host, Network, Peer, Peers, Phase, Segment, Subnet
from driver.wish.state import State
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId, Vni
from tests.fakes.kernel import FakeKernel
from tests.unit import test_overlay
from tests.unit.test_overlay import Node, _soon

NET = NetworkId("net")
MACS = [Mac(f"02:42:0a:00:00:{n:02x}") for n in range(8)]
ADDRESSES: list[Address] = [ip_address(f"10.{s}.0.{n}") for s in range(3) for n in range(2, 7)]
VTEPS: list[Address] = [*(ip_address(f"192.0.2.{n}") for n in range(2, 6)), ip_address("2001:db8::2")]
NETWORK = Network(
    NET, tuple(Segment(Vni(100 + s), (Subnet(ip_network(f"10.{s}.0.0/24")),)) for s in range(2))
)


def peer(random: Random) -> Peer:
    return Peer(random.choice(MACS), random.choice(VTEPS), NodeId("other"))


def endpoint(random: Random, number: int) -> Endpoint:
    interface = ip_interface(f"{random.choice(ADDRESSES)}/24")
    phase = random.choice(list(Phase))
    return Endpoint(EndpointId(f"e{number}" * 20), NET, (interface,), random.choice(MACS), phase)


def world(random: Random) -> State:
    """Few addresses, MACs and hosts, so that they meet; the first endpoint is always there."""
    entries = {address: peer(random) for address in random.sample(ADDRESSES, random.randint(0, 12))}
    first = Endpoint(EndpointId("f" * 20), NET, (ip_interface("10.0.0.99/24"),), MACS[0], Phase.JOINED)
    local = [first, *(endpoint(random, n) for n in range(random.randint(0, 3)))]
    return State(
        Host(NodeId("me"), ip_address("192.0.2.1")),
        {NET: NETWORK},
        {one.id: one for one in local},
        doubtful=frozenset(one.id for one in local[1:] if random.random() < 0.2),
        peers=Peers(entries={NET: entries}),
    )


def changed(random: Random, state: State) -> State:
    """A few peers come, go and change; at times so do endpoints."""
    entries = dict(state.peers.entries[NET])
    for address in random.sample(ADDRESSES, random.randint(0, 3)):
        entries.pop(address, None)
        if random.random() < 0.7:
            entries[address] = peer(random)
    other = world(random) if random.random() < 0.3 else state
    return replace(
        state,
        endpoints=other.endpoints,
        doubtful=other.doubtful,
        peers=replace(state.peers, entries={NET: entries}),
    )


@given(st.integers(0, 1_000_000))
def test_it_shows_the_change_that_the_whole_shows(seed: int) -> None:
    random = Random(seed)
    before = world(random)
    after = changed(random, before)
    whole = changed_rows(desired(before, NET), desired(after, NET))
    was, want = (desired(state, NET) for state in narrowed(before, after, NET))
    assert changed_rows(was, want) == whole


@given(st.integers(0, 1_000_000))
def test_all_shortcuts_belong_to_it(seed: int) -> None:
    random = Random(seed)
    before = world(random)
    after = changed(random, before)
    part = changed_part(before, after, NET, FALLBACK_UNDERLAY)
    assert shortcuts(part.want) == shortcuts(desired(after, NET))
    without = changed_part(before, after, NET, FALLBACK_UNDERLAY, shortcuts=False)
    assert shortcuts(without.want) == {}


@given(st.integers(0, 1_000_000))
def test_it_knows_what_was_wanted_in_its_place(seed: int) -> None:
    random = Random(seed)
    before = world(random)
    after = changed(random, before)
    part, old = changed_part(before, after, NET, FALLBACK_UNDERLAY), desired(before, NET)
    assert part.was is not None
    assert part.was.items() <= old.items()
    assert old.keys() & part.want.keys() <= part.was.keys()


def shortcuts(state: KernelState) -> KernelState:
    return {key: obj for key, obj in state.items() if isinstance(obj, Shortcut)}


def test_it_leaves_out_what_has_nothing_to_do_with_the_change() -> None:
    entries = {address: Peer(MACS[n % 8], VTEPS[n % 2], NodeId("a")) for n, address in enumerate(ADDRESSES)}
    before = replace(world(Random(1)), peers=Peers(entries={NET: entries}))
    new = {**entries, ip_address("10.0.0.77"): Peer(Mac("02:42:00:00:00:77"), VTEPS[3], NodeId("b"))}
    after = replace(before, peers=Peers(entries={NET: new}))
    small, grown = narrowed(before, after, NET)
    assert small.peers.entries[NET] == {}
    assert list(grown.peers.entries[NET]) == [ip_address("10.0.0.77")]


def test_a_host_that_has_other_endpoints_keeps_its_replication_row() -> None:
    entries = {ADDRESSES[n]: Peer(MACS[n], VTEPS[0], NodeId("a")) for n in (1, 2)}
    before = replace(world(Random(1)), endpoints={}, peers=Peers(entries={NET: entries}))
    first = Endpoint(EndpointId("f" * 20), NET, (ip_interface("10.0.0.99/24"),), MACS[0], Phase.JOINED)
    before = replace(before, endpoints={first.id: first})
    after = replace(before, peers=Peers(entries={NET: {ADDRESSES[1]: entries[ADDRESSES[1]]}}))
    was, want = (desired(state, NET) for state in narrowed(before, after, NET))
    rows = changed_rows(was, want).values()
    assert len(rows) == 2
    assert FLOOD_MAC not in {row.mac for row in rows if isinstance(row, FdbEntry)}


class TestAfterOperations:
    """What is to be read again."""

    want = desired(world(Random(3)), NET)

    def test_devices_that_were_made_have_lost_all_their_rows(self) -> None:
        vxlan = next(obj for obj in self.want.values() if isinstance(obj, Vxlan))
        assert Part(self.want, []).after([Set(vxlan)]) is None
        assert Part(self.want).after([Set(vxlan)]) == Part(self.want)

    def test_a_few_rows_of_many_are_read_alone(self) -> None:
        row = FdbEntry("ns", "vx1", MACS[0], VTEPS[0])
        rows = [row._replace(mac=Mac(f"02:42:0a:00:01:{n:02x}")) for n in range(20)]
        whole = Part({**self.want, **{one.key: one for one in rows}})
        part = whole.after([Set(rows[0])])
        assert part is not None
        assert part.rows is not None
        assert list(part.rows) == rows[:1]
        assert part.want.keys() == {rows[0].key} | {k for k, o in self.want.items() if not isinstance(o, Row)}
        assert whole.after([Set(one) for one in rows]) is whole
        assert whole.after([Delete(row._replace(mac=FLOOD_MAC))]) is whole


class Reads(FakeKernel):
    """Remembers how many rows it was asked for each time; None for all."""

    def __init__(self, *, old: bool) -> None:
        super().__init__()
        self.asked: list[int | None] = []
        self._old = old

    def read_place(self, namespace: str, rows: Collection[Row] | None = None) -> KernelState:
        self.asked.append(None if rows is None else len(rows))
        if self._old and rows is not None:
            raise KernelError("not supported", 95)
        return super().read_place(namespace, rows)


def at_rest(node: Node) -> None:
    assert node.reconciler.wait_tried(node.wish.snapshot()[1], 30)


@pytest.mark.parametrize("old", [False, True], ids=["kernel that reads single rows", "kernel before 5.0"])
def test_one_change_among_many_reads_a_few_rows(monkeypatch: pytest.MonkeyPatch, *, old: bool) -> None:
    monkeypatch.setattr(test_overlay, "FakeKernel", lambda: Reads(old=old))
    cluster = MemoryStore()
    one, two = Node(1, cluster), Node(2, cluster)
    try:
        for node in (one, two):
            node.create()
        one.attach("e0" * 32, "10.62.0.4")
        for number in range(20):
            two.overlay.create_endpoint(
                test_overlay.NET, f"a{number:02}" * 20, [ip_interface(f"10.62.0.{100 + number}/24")], None, {}
            )
        assert _soon(lambda: len(one.rows()) == 20)
        kernel = one.kernel
        assert isinstance(kernel, Reads)
        at_rest(one)
        kernel.asked.clear()
        two.overlay.delete_endpoint(test_overlay.NET, "a00" * 20)
        assert _soon(lambda: len(one.rows()) == 19)
        assert _soon(lambda: len(kernel.asked) >= 2)
        at_rest(one)
        assert (None in kernel.asked) is old
        kernel.asked.clear()
        one.attach("e1" * 32, "10.62.0.5")
        assert (None in kernel.asked) is old
        assert one.floods() == {"192.0.2.2"}
    finally:
        one.end()
        two.end()
