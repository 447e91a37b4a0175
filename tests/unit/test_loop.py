"""The loop of the reconcilers: who comes when, and whom a failure concerns."""

from __future__ import annotations

import itertools
import logging
import select
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from itertools import pairwise

import pytest

from driver.cluster.memory import MemoryStore
from driver.kernel.kinds import Balancer, Row, Vxlan
from driver.kernel.names import namespace_name
from driver.kernel.objects import KernelObject, KernelState, Key
from driver.kernel.ops import Op
from driver.mode import Alone
from driver.reconcile import loop, networks, part
from driver.reconcile.desired import desired
from driver.reconcile.loop import Change, Progress, Reconciler
from driver.reconcile.sandboxes import SandboxReconciler
from driver.wish.errors import KernelError
from driver.wish.model import Host, Peer, Underlay
from driver.wish.state import State, with_join, with_join_answered
from driver.wish.values import HOST, EndpointId, Mac, NetworkId, NodeId, Scope
from driver.wish.wish import Wish
from lib.supervised import Doing
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel
from tests.fakes.sandboxes import FakeSandboxes
from tests.unit import test_overlay
from tests.unit.test_balancers import NET as SERVED
from tests.unit.test_balancers import VIP, at, record, state
from tests.unit.test_overlay import EP, EP2, NET, Node, _soon
from tests.unit.test_sandboxes import BOX1, BOX2, NAME

OTHER = "othernetwork"
UNFORESEEN = [
    struct.error("ushort format requires 0 <= number <= 65535"),
    RuntimeError("can't start new thread"),
]


class Toy(Reconciler[str, Progress]):
    """Items with names. The test says what has changed, and what fails how."""

    def __init__(self, *items: str) -> None:
        self.now = 0.0
        self.wished = Wish(MemoryDisk(State(Host(NodeId("n"), None))))
        super().__init__("toys", self.wished, Progress, audit_interval=30.0, clock=lambda: self.now)
        self._alarm = loop.new_alarm()
        self.changes = dict.fromkeys(items, Change.NONE)
        self.attended: list[str] = []
        self.whole: list[str] = []
        self.surveys = 0
        self.rests: list[float] = []
        self.troubles: dict[str, Exception] = {}
        self.meanwhile: Callable[[str], None] = lambda _item: None

    def _survey(self, state: State, revision: int) -> Mapping[str, Change]:
        self.surveys += 1
        if trouble := self.troubles.get("survey"):
            raise trouble
        return dict(self.changes)

    def _reconcile(self, item: str, progress: Progress, *, whole: bool) -> Mapping[Key, KernelError]:
        self.attended.append(item)
        if whole:
            self.whole.append(item)
        self.changes[item] = Change.NONE
        self.meanwhile(item)
        if trouble := self.troubles.get(item):
            raise trouble
        return {}

    def _await_news(self, timeout: float, wake: int) -> bool:
        self.rests.append(timeout)
        return bool(select.select([wake], [], [], timeout if self._thread.alive else 0)[0])

    def _label(self, item: str) -> str:
        return f"toy {item}"

    def start(self) -> None:
        self._alarm.close()  # it was for turns without a thread
        super().start()

    # What tests do: all in the test's own thread, turn by turn.

    def say(self, **changes: Change) -> None:
        self.changes |= changes
        self.wished.change(lambda s: replace(s, host=replace(s.host, id=NodeId(s.host.id + "n"))))

    def turns(self, count: int) -> list[str]:
        before = len(self.attended)
        for _ in range(count):
            self._turn()
        return self.attended[before:]

    def settle(self) -> None:
        while self.turns(1):
            pass


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(loop, "_SETTLE", 0.0)
    made = Toy("a", "b", "c")
    made.settle()
    yield made
    made.stop()


class TestTurns:
    def test_at_first_all_is_looked_at_whole(self, toy: Toy) -> None:
        assert toy.whole == ["a", "b", "c"]
        assert toy.wait_tried(1, 0)

    def test_who_is_waited_for_comes_first_from_the_beginning(self) -> None:
        toy = Toy("a", "b", "c")
        toy.changes |= {"b": Change.SOME, "c": Change.URGENT}
        first = toy.turns(1)
        toy.stop()
        assert first == ["c"]

    def test_a_turn_attends_to_one_item_and_whoever_is_waited_for_comes_first(self, toy: Toy) -> None:
        toy.say(a=Change.SOME, b=Change.SOME, c=Change.URGENT)
        assert toy.turns(1) == ["c"]
        assert not toy.wait_tried(2, 0)
        toy.say(b=Change.URGENT)
        assert toy.turns(2) == ["b", "a"]
        assert toy.wait_tried(3, 0)
        assert toy.turns(1) == []

    def test_what_changes_while_an_item_is_attended_to_is_seen_before_the_next(self, toy: Toy) -> None:
        toy.say(a=Change.SOME, b=Change.SOME)
        toy.meanwhile = lambda item: toy.say(c=Change.URGENT) if item == "a" else None
        assert toy.turns(3) == ["a", "c", "b"]

    def test_an_audit_looks_at_one_item_a_turn_and_gives_way(self, toy: Toy) -> None:
        toy.now = 31
        assert toy.turns(1) == ["a"]
        toy.say(c=Change.SOME)
        assert toy.turns(1) == ["c"]
        assert toy.whole[3:] == ["a", "c"], "its audit is done, too"
        assert toy.turns(2) == ["b"]

    def test_between_audits_the_kernels_news_are_taken(self, toy: Toy) -> None:
        toy.now = 31
        toy.rests.clear()
        toy.turns(2)
        assert toy.rests == [0.0, 0.0]
        toy.turns(1)
        assert toy.rests[-1] == 29.0

    def test_audits_come_although_something_changes_all_the_time(self, toy: Toy) -> None:
        toy.meanwhile = lambda _item: toy.say(a=Change.SOME)
        toy.now = 31
        toy.say(a=Change.SOME)
        for _ in range(300):
            toy.now += 0.2
            toy.turns(1)
        assert {"b", "c"} <= set(toy.whole[3:])

    def test_an_item_that_is_neither_wished_nor_there_is_forgotten(self, toy: Toy) -> None:
        del toy.changes["b"]
        toy.say()
        toy.now = 31
        assert toy.turns(3) == ["a", "c"]
        assert toy.wait_tried(2, 0)


class TestFailures:
    @pytest.fixture(autouse=True)
    def _fails(self, toy: Toy) -> None:
        toy.troubles["b"] = KernelError("out of memory", 12)
        toy.say(b=Change.SOME)
        toy.settle()
        toy.attended.clear()

    def test_what_fails_is_tried_again_with_growing_pauses(self, toy: Toy) -> None:
        tries = []
        while toy.now < 60:
            toy.now = round(toy.now + 0.1, 1)
            tries += [toy.now for item in toy.turns(4) if item == "b"]
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert tries[0] == 0.1
        assert max(pauses) <= 10.1
        assert len(tries) < 16

    def test_other_news_wait_for_the_next_try_but_nobody_who_is_in_a_hurry_does(self, toy: Toy) -> None:
        toy.say(b=Change.SOME)
        assert toy.turns(2) == []
        assert toy.wait_tried(3, 0), "its failure is the answer"
        toy.say(b=Change.URGENT)
        assert toy.turns(2) == ["b"]

    def test_the_others_go_on(self, toy: Toy) -> None:
        toy.say(a=Change.SOME, b=Change.SOME, c=Change.SOME)
        assert toy.turns(3) == ["a", "c"]

    def test_when_it_goes_well_the_pauses_begin_anew(self, toy: Toy) -> None:
        toy.now = 5
        toy.turns(1)
        toy.troubles.clear()
        toy.now = 20
        assert toy.turns(2) == ["b", "b"][:1]
        toy.troubles["b"] = KernelError("out of memory", 12)
        toy.say(b=Change.SOME)
        assert toy.turns(1) == ["b"]
        toy.now += 0.11
        assert toy.turns(1) == ["b"]

    def test_a_failure_is_logged_once_and_what_nobody_foresaw_with_its_traceback(
        self, toy: Toy, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.clear()
        toy.troubles["b"] = UNFORESEEN[0]
        for _ in range(5):
            toy.now += 10
            toy.turns(4)
        (told,) = caplog.records
        assert (told.levelno, bool(told.exc_info)) == (logging.ERROR, True)
        assert told.getMessage().startswith("toy b: unexpected fault: error: ushort")


def test_a_fault_outside_of_any_item_does_not_make_the_thread_spin(caplog: pytest.LogCaptureFixture) -> None:
    toy = Toy("a")
    toy.troubles["survey"] = RuntimeError("nobody foresaw it")
    toy.start()
    began = time.monotonic()
    while toy.surveys < 3:
        toy.say()
    assert time.monotonic() - began > 0.25, "0.1 s, then 0.2 s"
    assert len([r for r in caplog.records if r.exc_info]) == 1
    (thread,) = toy.threads
    assert (thread.state.name, thread.state.doing) == ("toys", Doing.FAILING)
    toy.troubles.clear()
    assert _soon(lambda: toy.attended == ["a"])
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    toy.stop()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(1, MemoryStore())
    made.create()
    yield made
    made.end()


def failing_in(node: Node, network: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have each read of *network* fail; return when."""
    tries: list[float] = []

    def read(place: str, rows: Collection[Row] | None = None) -> KernelState:
        if place == namespace_name(NetworkId(network)):
            tries.append(time.monotonic())
            raise error
        return FakeKernel.read_place(node.kernel, place, rows)

    monkeypatch.setattr(node.kernel, "read_place", read)
    return tries


@pytest.mark.parametrize("error", UNFORESEEN, ids=["struct.error", "RuntimeError"])
def test_one_networks_fault_stops_no_other_and_nobody_spins(
    node: Node, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even while others change all the time what they have in it."""
    node.attach(EP, "10.62.0.4")
    tries = failing_in(node, NET, error, monkeypatch)
    node.create(network=OTHER)
    numbers = itertools.count()

    def others_speak() -> bool:
        announce(node, NET, next(numbers))
        return len(tries) > 2

    assert _soon(others_speak)
    node.attach(EP2, "10.62.0.5", OTHER)
    announce(node, OTHER, 1)
    assert _soon(lambda: node.rows(OTHER) == {"10.62.0.200": "192.0.2.200"})
    assert all(pause > 0.09 * 2**n for n, pause in enumerate(later - t for t, later in pairwise(tries)))
    told = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in told] == [
        f"network {NET}: unexpected fault: {type(error).__name__}: {error}"
    ]
    with pytest.raises(KernelError, match="unexpected fault"):
        node.attach("ab" + EP2[2:], "10.62.0.6")
    monkeypatch.undo()
    node.attach("ab" + EP2[2:], "10.62.0.6")


def announce(node: Node, network: str, number: int) -> None:
    """Have another host say something new of a network."""
    peer = Peer(Mac("02:42:0a:3e:00:c8"), ip_address("192.0.2.200"), NodeId(f"other{number}"))
    entries = {NetworkId(network): {ip_address("10.62.0.200"): peer}}
    node.wish.change(lambda s: replace(s, peers=replace(s.peers, entries={**s.peers.entries, **entries})))


@pytest.mark.parametrize("call", ["read_sandbox", "apply"])
@pytest.mark.parametrize("error", UNFORESEEN, ids=["struct.error", "RuntimeError"])
def test_one_sandboxs_fault_stops_no_other(
    error: Exception, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = FakeSandboxes(BOX1, BOX2)
    method = getattr(kernel, call)

    def fail(what: str | Sequence[Op]) -> object:
        concerned = what if isinstance(what, str) else what[0].want.key.place  # type: ignore[union-attr]
        if concerned == BOX1:
            raise error
        return method(what)

    monkeypatch.setattr(kernel, call, fail)
    wish = Wish(MemoryDisk(state(record(1, 11))))
    wish.change(lambda _: state(record(1, 11)))
    reconciler = SandboxReconciler(wish, kernel, audit_interval=60.0)
    reconciler.start()
    assert _soon(lambda: kernel.services(BOX2) == {NAME: {VIP: (at(1), at(11))}})
    revision = wish.change(lambda s: replace(s, services={SERVED: {VIP: record(2, 11)}}))
    assert reconciler.wait_tried(revision, 30)
    assert kernel.services(BOX2) == {NAME: {VIP: (at(2), at(11))}}
    assert len([r for r in caplog.records if r.exc_info and BOX1 in r.getMessage()]) == 1
    monkeypatch.undo()
    assert _soon(lambda: kernel.services(BOX1) == kernel.services(BOX2))
    reconciler.stop()


def test_what_cannot_be_adopted_stops_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node.attach(EP, "10.62.0.4")
    node.create(network=OTHER)
    node.attach(EP2, "10.62.0.5", OTHER)
    node.end()
    failing_in(node, NET, UNFORESEEN[0], monkeypatch)
    node.begin()
    assert f"network {NET}: cannot adopt what is in the kernel" in caplog.text
    node.attach("ab" + EP2[2:], "10.62.0.6", OTHER)


def test_a_join_during_an_audit_waits_for_one_network_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes long to read each of many networks."""
    node = Node(1, MemoryStore(), Alone)
    node.end()
    node.audit_interval = 1.0
    node.begin()
    many = [f"{number:02}".ljust(25, "x") for number in range(20)]
    for number, network in enumerate(many):
        node.create(network=network)
        node.attach(f"{number:02}" * 32, "10.62.0.4", network)
    node.overlay.create_endpoint(many[-1], EP, [ip_interface("10.62.0.9/24")], None, {})
    _, revision = node.wish.snapshot()
    assert node.reconciler.wait_tried(revision, 30)
    reads: list[str] = []
    joined_after: list[int] = []

    def read(place: str, rows: Collection[Row] | None = None) -> KernelState:
        reads.append(place)
        if len(reads) == 5:
            joined_after.append(len(reads))
            node.wish.change(lambda s: with_join(s, NetworkId(many[-1]), EndpointId(EP), "/run/x", "a Join"))
        return FakeKernel.read_place(node.kernel, place, rows)

    monkeypatch.setattr(node.kernel, "read_place", read)
    assert _soon(lambda: set(reads) >= {namespace_name(NetworkId(network)) for network in many}), "all"
    (then,) = joined_after
    assert reads[then] == namespace_name(NetworkId(many[-1])), reads
    node.wish.change(lambda s: with_join_answered(s, EndpointId(EP), "a Join"))
    node.end()


class Stubborn(FakeKernel):
    """Takes another MTU for tunnels than it keeps, while *stubborn*."""

    stubborn = False

    def _set(self, want: KernelObject) -> None:
        super()._set(want)
        if self.stubborn and isinstance(want, Vxlan):
            self.objects[want.key] = replace(want, mtu=1400)


def test_what_the_kernel_does_not_keep_is_an_error_until_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(test_overlay, "FakeKernel", Stubborn)
    node = Node(1, MemoryStore())
    kernel = node.kernel
    assert isinstance(kernel, Stubborn)
    try:
        node.create()
        node.attach(EP, "10.62.0.4")
        (right,) = (obj for obj in node.have().values() if isinstance(obj, Vxlan))
        kernel.stubborn = True
        kernel.spoil(replace(right, mtu=1400))
        complaint = f"not converged: the kernel does not keep what was set: {right.name}: mtu was 1400"
        assert _soon(lambda: f"network {NET}: VXLAN device {right.name}: {complaint}" in caplog.text)
        with pytest.raises(KernelError, match="not converged"):
            node.attach(EP2, "10.62.0.5")
        applied = len(kernel.applied)
        assert _soon(lambda: len(kernel.applied) > applied), "tried again"
        told = [r.getMessage() for r in caplog.records if r.name.startswith("driver.reconcile")]
        assert told == [f"network {NET}: VXLAN device {right.name}: {complaint} (1 in all)"], "once"
        kernel.stubborn = False
        assert _soon(lambda: node.have()[right.key] == right)
        node.attach(EP2, "10.62.0.5")
    finally:
        node.end()


class TestHost:
    """The host itself is a scope beside the networks."""

    LEFT = Balancer(HOST, "pyoverlay-left", {})
    """Stands for any object that belongs to the host; what it is like does not matter."""

    @pytest.fixture
    def wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it wanted while there is an endpoint EP."""

        def with_host(state: State, scope: Scope, underlay: Underlay, *, shortcuts: bool) -> KernelState:
            if scope is HOST:
                return {self.LEFT.key: self.LEFT} if EndpointId(EP) in state.endpoints else {}
            return desired(state, scope, underlay, shortcuts=shortcuts)

        monkeypatch.setattr(part, "desired", with_host)
        monkeypatch.setattr(networks, "desired", with_host)

    def there(self, node: Node) -> set[Key]:
        return {key for key in node.kernel.all_objects() if key.place == HOST}

    def test_what_a_former_process_left_goes(self, node: Node) -> None:
        node.end()
        node.kernel.spoil(self.LEFT)
        node.begin()
        assert _soon(lambda: not self.there(node))

    @pytest.mark.usefixtures("wanted")
    def test_what_is_wanted_is_made_kept_and_taken_away(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        node.attach(EP, "10.62.0.4")
        assert _soon(lambda: self.there(node) == {self.LEFT.key})
        assert node.reconciler.repairs == {}
        node.kernel.lose(self.LEFT.key)
        assert _soon(lambda: self.there(node) == {self.LEFT.key})
        assert _soon(lambda: "the host: repaired: " in caplog.text)
        node.detach(EP)
        assert _soon(lambda: not self.there(node))

    @pytest.mark.usefixtures("wanted")
    def test_its_failure_is_no_networks(self, node: Node, caplog: pytest.LogCaptureFixture) -> None:
        node.kernel.fail_next(Balancer.kind, 12, times=2)
        node.attach(EP, "10.62.0.4")
        assert _soon(lambda: self.there(node) == {self.LEFT.key})
        assert "the host: table" in caplog.text

    def test_a_bare_host_is_not_read(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        node.end()
        node.audit_interval = 0.1
        node.begin()
        node.attach(EP, "10.62.0.4")
        reads: list[str] = []

        def read(place: str, rows: Collection[Row] | None = None) -> KernelState:
            reads.append(place)
            return FakeKernel.read_place(node.kernel, place, rows)

        monkeypatch.setattr(node.kernel, "read_place", read)
        node.attach(EP2, "10.62.0.5")
        assert _soon(lambda: len(reads) > 10)
        assert HOST not in reads
