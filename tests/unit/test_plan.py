"""diff: from wish and kernel to operations, for any two states of the kernel."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from driver.kernel.kinds import KINDS, FdbEntry, Namespace, Neighbour, Port, Shortcut, Vxlan
from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Delete, Op, Set
from driver.reconcile.plan import diff
from tests.fakes.kernel import FakeKernel
from tests.kernel.samples import network
from tests.worlds import converge, everything, world

worlds = st.integers(0, 10_000).map(lambda seed: world(Random(seed)))
State = dict[Key, KernelObject]


def applied(ops: list[Op], have: State) -> State:
    """The simplest kernel: a dict in which children go with their parents."""
    state = dict(have)
    for op in ops:
        if isinstance(op, Set):
            if op.have is not None:
                del state[op.have.key]
            state[op.want.key] = op.want
        else:
            state.pop(op.have.key, None)
            state = _without_orphans(state)
    return state


def _without_orphans(state: State) -> State:
    while orphans := [k for k, obj in state.items() if (above := obj.parent) and above not in state]:
        for key in orphans:
            del state[key]
    return state


@given(worlds, worlds)
def test_applying_the_difference_gives_the_wish(want: State, have: State) -> None:
    assert applied(diff(want, have), have) == want


@given(worlds)
def test_between_equals_there_is_no_difference(want: State) -> None:
    assert diff(want, dict(want)) == []


@given(worlds, worlds, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(want: State, have: State, random: Random) -> None:
    def shuffled(state: State) -> State:
        items = list(state.items())
        random.shuffle(items)
        return dict(items)

    assert diff(shuffled(want), shuffled(have)) == diff(want, have)


@given(worlds, worlds)
def test_parents_come_first_and_children_go_first(want: State, have: State) -> None:
    ops = diff(want, have)
    there = set(have)
    deletes = [op for op in ops if isinstance(op, Delete)]
    assert ops[: len(deletes)] == deletes
    for op in deletes:
        children = [k for k in there if k in have and have[k].parent == op.have.key]
        assert all(have[key].goes_with_parent for key in children)
        there.discard(op.have.key)
    for later in ops[len(deletes) :]:
        assert isinstance(later, Set)
        above = later.want.parent
        assert above is None or above in there
        there.add(later.want.key)


@given(worlds, worlds)
def test_each_key_is_touched_once(want: State, have: State) -> None:
    keys = [op.want.key if isinstance(op, Set) else op.have.key for op in diff(want, have)]
    assert len(keys) == len(set(keys))


@given(worlds, worlds)
def test_before_in_sync_no_row_is_deleted(want: State, have: State) -> None:
    ops = diff(want, have, prune_rows=False)
    assert not [op for op in ops if isinstance(op, Delete) and isinstance(op.have, FdbEntry | Neighbour)]
    others = [op for op in diff(want, have) if op not in ops]
    assert all(isinstance(op, Delete) and isinstance(op.have, FdbEntry | Neighbour) for op in others)


@given(worlds, worlds)
def test_a_set_tells_what_was_there(want: State, have: State) -> None:
    for op in diff(want, have):
        if isinstance(op, Set):
            assert op.have == have.get(op.want.key)
            assert op.have != op.want


@given(worlds, worlds)
def test_the_fake_kernel_gets_there_as_the_real_one_does(want: State, have: State) -> None:
    kernel = FakeKernel()
    assert converge(kernel, have) == have
    assert converge(kernel, want) == want
    assert everything(kernel, {}) == want


@given(worlds, worlds)
def test_failures_heal(want: State, have: State) -> None:
    """Whatever the kernel refused in one round is done in the next ones."""
    kernel = FakeKernel()
    converge(kernel, have)
    for kind in KINDS:
        kernel.fail_next(kind.kind, 12, times=2)
    kernel.apply(diff(want, everything(kernel, want)))
    kernel.heal()
    assert converge(kernel, want) == want


@given(worlds)
def test_a_port_that_the_engine_has_is_mended_and_never_made(want: State) -> None:
    for key, obj in want.items():
        if not isinstance(obj, Port):
            continue
        handed_over = replace(obj, create=False)
        assert diff({key: handed_over}, {}) == []
        assert diff({key: handed_over}, {key: replace(obj, bridge="")}) == [
            Set(handed_over, replace(obj, bridge=""))
        ]


@given(worlds)
def test_devices_go_one_by_one_before_their_namespace(have: State) -> None:
    """A namespace ends in the background; until then its VNIs would be busy."""
    ops = diff({}, have)
    gone = [op.have.key for op in ops if isinstance(op, Delete)]
    assert {key for key, obj in have.items() if isinstance(obj, Vxlan | Port | Namespace)} <= set(gone)
    last = [key.kind for key in gone if key.kind in (Vxlan.kind, Namespace.kind)]
    assert last == sorted(last, reverse=True)


@given(worlds, st.randoms(use_true_random=False))
def test_a_port_that_somebody_renamed_gets_its_name_back(want: State, random: Random) -> None:
    """A new one would be no help: the container has the other end of this one."""
    ports = [obj for obj in want.values() if isinstance(obj, Port)]
    have = dict(want)
    for port in random.sample(ports, min(2, len(ports))):
        del have[port.key]
        stray = replace(port, name=f"stray{len(have)}")
        have[stray.key] = stray
    ops = diff(want, have)
    assert not [op for op in ops if isinstance(op, Delete)]
    assert applied(ops, have) == want


def test_a_port_that_is_gone_for_good_takes_its_shortcut_with_it() -> None:
    want = network()
    (port,) = (obj for obj in want.values() if isinstance(obj, Port))
    (shortcut,) = (obj for obj in want.values() if isinstance(obj, Shortcut))
    want[port.key] = replace(port, create=False)
    without_port = {key: obj for key, obj in want.items() if key != port.key}
    dead_end = replace(shortcut, port="")
    assert diff(want, {**without_port, shortcut.key: dead_end}) == [Delete(dead_end)]
    del without_port[shortcut.key]
    assert diff(want, without_port) == []
    stray = replace(port, name="stray")
    assert diff(want, {**without_port, stray.key: stray}) == [Set(want[port.key], stray), Set(shortcut)]
