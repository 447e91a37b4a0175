"""One order, nothing answered before it is on disk, and no wait for those whom the disk does not concern."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lib.committed import Committed

PATIENCE = 5.0
"""Seconds after which what a test waits for will not come any more."""


class Value(NamedTuple):
    """*kept* must be on disk; *log* has the number of every step that has changed the value."""

    kept: tuple[str, ...] = ()
    log: tuple[int, ...] = ()


Step = Callable[[Value], tuple[Value, Value]]
"""Answers with the value that it was applied to."""


class Taken(Exception):
    """A name is kept already."""


class Unknown(Exception):
    """A name is not kept."""


class Full(Exception):
    """The disk has no room."""


def keep(number: int, name: str) -> Step:
    """Keep a name that nobody has."""

    def step(value: Value) -> tuple[Value, Value]:
        if name in value.kept:
            raise Taken(name)
        return Value((*value.kept, name), (*value.log, number)), value

    return step


def drop(number: int, name: str) -> Step:
    """Keep a name no longer; nothing to do when it is not there."""

    def step(value: Value) -> tuple[Value, Value]:
        if name not in value.kept:
            return value, value
        kept = tuple(other for other in value.kept if other != name)
        return Value(kept, (*value.log, number)), value

    return step


def note(number: int, _name: str) -> Step:
    """Change what the disk does not see."""
    return lambda value: (Value(value.kept, (*value.log, number)), value)


def count(number: int, _name: str) -> Step:
    """Keep something that depends on what the disk does not see."""
    return lambda value: (Value((*value.kept, f"after {len(value.log)}"), (*value.log, number)), value)


def use(number: int, name: str) -> Step:
    """Change what the disk does not see, if a name is kept."""

    def step(value: Value) -> tuple[Value, Value]:
        if name not in value.kept:
            raise Unknown(name)
        return note(number, name)(value)

    return step


KINDS = {"keep": keep, "drop": drop, "note": note, "count": count, "use": use}


class SlowDisk:
    """Writes when it is let, and fails when it is told."""

    def __init__(self) -> None:
        self.saved: tuple[str, ...] = ()
        self.writes = 0
        self._verdict: Future[bool] | None = None

    def load(self) -> Value | None:
        return None

    def save(self, value: Value) -> None:
        self._verdict = Future()
        well = self._verdict.result(PATIENCE)
        self.writes += 1
        if not well:
            raise Full("no room")
        self.saved = value.kept

    @property
    def busy(self) -> bool:
        return self._verdict is not None and not self._verdict.done()

    def end_write(self, *, well: bool) -> None:
        assert self._verdict is not None
        self._verdict.set_result(well)


class Call:
    """A call in a thread of its own."""

    def __init__(self, world: World, kind: str, number: int, name: str, *, lasting: bool) -> None:
        self.kind, self.number, self.name, self.lasting = kind, number, name, lasting
        self.step = KINDS[kind](number, name)
        self.done: Future[tuple[Value, int]] = world.pool.submit(
            world.committed.change, self.step, lasting=lasting
        )

    @property
    def answer(self) -> Value:
        return self.done.result(PATIENCE)[0]

    @property
    def error(self) -> BaseException | None:
        return self.done.exception(PATIENCE)


class World:
    """A value on a slow disk, and calls."""

    def __init__(self) -> None:
        self.disk = SlowDisk()
        self.committed = Committed(Value(), self.disk, durable=lambda value: value.kept)
        self.calls: list[Call] = []
        self.pool = ThreadPoolExecutor(100)

    @property
    def value(self) -> Value:
        return self.committed.snapshot()[0]

    @property
    def waiting(self) -> list[Call]:
        return [call for call in self.calls if not call.done.done()]

    def call(self, kind: str, name: str = "", *, lasting: bool = True) -> Call:
        """Begin a call; return when it is over or cannot go on."""
        call = Call(self, kind, len(self.calls), name, lasting=lasting)
        self.calls.append(call)
        self.settle()
        return call

    def end_write(self, *, well: bool) -> None:
        self.disk.end_write(well=well)
        self.settle()

    def settle(self) -> None:
        """Wait until every call is over, or held up by a write or behind it."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_settled():
            assert time.monotonic() < deadline, "a call hangs"
            time.sleep(0.0002)

    def _is_settled(self) -> bool:
        held_up = len(self.committed._group) + len(self.committed._queue)
        return len(self.waiting) == held_up and self.disk.busy == bool(held_up)

    def close(self) -> None:
        while self.disk.busy:
            self.end_write(well=True)
        self.pool.shutdown()

    def replayed(self, log: tuple[int, ...]) -> Value:
        """Apply the steps of *log* one after another."""
        value = Value()
        for number in log:
            value, _ = self.calls[number].step(value)
        return value


class AnyCalls(RuleBasedStateMachine):
    """Any calls, with a disk that takes its time and fails at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.seen = [self.world.committed.snapshot()]
        self.unwritten: set[str] = set()
        """What was dropped although the disk refused."""

    def teardown(self) -> None:
        self.world.close()
        self.what_was_seen_is_made_of_the_steps_in_order()

    @rule(kind=st.sampled_from([*KINDS]), name=st.sampled_from("ab"), lasting=st.booleans())
    def somebody_calls(self, kind: str, name: str, lasting: bool) -> None:
        lasting = lasting or kind != "drop"  # only what takes away need not last
        kept = self.world.value.kept
        counted = any(call.kind == "count" for call in self.world.waiting)
        call = self.world.call(kind, name, lasting=lasting)
        assert self.world.value.kept == kept, "seen before it was on disk"
        if kind == "note" and not counted:
            assert call.done.done(), "held up by a disk that it has nothing to do with"

    @precondition(lambda self: self.world.disk.busy)
    @rule()
    def the_write_succeeds(self) -> None:
        self.world.end_write(well=True)
        self.unwritten = set()

    @precondition(lambda self: self.world.disk.busy)
    @rule()
    def the_write_fails(self) -> None:
        waiting = self.world.waiting
        self.world.end_write(well=False)
        over = [call for call in waiting if call.done.done()]
        assert over
        self.unwritten |= {call.name for call in over if not call.lasting}

    @invariant()
    def what_was_seen_is_made_of_the_steps_in_order(self) -> None:
        value, revision = self.world.committed.snapshot()
        former, former_revision = self.seen[-1]
        assert value == self.world.replayed(value.log)
        assert value.log[: len(former.log)] == former.log
        assert (revision > former_revision) == (value != former)
        self.seen.append((value, revision))

    @invariant()
    def the_disk_has_what_everybody_sees(self) -> None:
        kept, saved = self.world.value.kept, self.world.disk.saved
        assert kept == saved or kept == tuple(name for name in saved if name not in self.unwritten)

    @invariant()
    def every_call_was_answered_for_what_it_did(self) -> None:
        log = self.world.value.log
        for call in self.world.calls:
            if not call.done.done() or call.error:
                assert call.number not in log
            elif call.number in log:
                assert call.answer == self.world.replayed(log[: log.index(call.number)])
            else:
                assert call.kind == "drop"
            if call.done.done():
                assert isinstance(call.error, Taken | Unknown | Full | None)


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.close()


def test_one_write_serves_all_that_wait(world: World) -> None:
    calls = [world.call("keep", str(number)) for number in range(50)]
    assert world.value == Value()
    world.end_write(well=True)
    assert world.value.kept == ("0",)
    assert [call.done.done() for call in calls] == [True] + 49 * [False]
    world.end_write(well=True)
    assert world.disk.writes == 2
    assert world.disk.saved == world.value.kept == tuple(map(str, range(50)))


def test_who_looks_sees_the_former_value_while_the_disk_writes(world: World) -> None:
    world.call("keep", "a")
    assert world.committed.snapshot() == (Value(), 1)
    world.end_write(well=True)
    assert world.committed.snapshot() == (Value(("a",), (0,)), 2)


def test_what_the_disk_does_not_see_goes_ahead(world: World) -> None:
    first, soft = world.call("keep", "a"), world.call("note")
    assert soft.done.done()
    assert world.value == Value((), (1,))
    world.end_write(well=True)
    assert first.answer == Value((), (1,))
    assert world.value == Value(("a",), (1, 0))


def test_what_would_alter_what_is_being_written_waits(world: World) -> None:
    world.call("count")
    soft = world.call("note")
    assert not soft.done.done()
    world.end_write(well=True)
    assert world.value == Value(("after 0",), (0, 1))
    assert world.disk.writes == 1


def test_what_builds_on_a_change_that_came_first_waits_for_it(world: World) -> None:
    world.call("keep", "a")
    use = world.call("use", "a")
    world.end_write(well=True)
    assert use.answer.kept == ("a",)
    assert world.disk.writes == 1


def test_what_would_undo_a_change_that_came_first_waits_for_it(world: World) -> None:
    world.call("keep", "a")
    behind_the_group = world.call("drop", "a", lasting=False)
    world.call("keep", "b")
    behind_the_queue = world.call("drop", "b", lasting=False)
    assert not behind_the_group.done.done()
    assert not behind_the_queue.done.done()
    world.end_write(well=True)
    world.end_write(well=True)
    assert world.value.kept == ()


def test_what_the_disk_refuses_has_never_been(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.call("keep", "a")
    world.end_write(well=True)
    world.call("keep", "b")
    kept, gone = world.call("keep", "c"), world.call("drop", "a", lasting=False)
    world.end_write(well=True)
    caplog.set_level(logging.WARNING)
    world.end_write(well=False)
    assert isinstance(kept.error, Full)
    assert gone.error is None
    assert (world.value.kept, world.disk.saved) == (("b",), ("a", "b"))
    assert caplog.messages == ["no room. What was removed stays removed in memory; the next change saves it"]
    world.call("keep", "d")
    world.end_write(well=True)
    assert world.disk.saved == ("b", "d")


def test_a_conflict_with_what_the_disk_refuses_is_none(world: World) -> None:
    world.call("keep", "x")
    world.call("keep", "a")
    same = world.call("keep", "a")
    world.end_write(well=True)
    world.end_write(well=False)
    assert isinstance(same.error, Full)
    again = world.call("keep", "a")
    world.end_write(well=True)
    assert again.error is None


def test_a_step_that_fails_harms_nobody_else(world: World) -> None:
    world.call("keep", "a")
    calls = [world.call("keep", name) for name in "bab"]
    world.end_write(well=True)
    world.end_write(well=True)
    assert [type(call.error) for call in calls] == [type(None), Taken, Taken]
    assert world.disk.saved == ("a", "b")


def test_whatever_ends_a_write_nobody_is_left_waiting() -> None:
    class Breaking(SlowDisk):
        def save(self, value: Value) -> None:
            super().save(value)
            raise KeyboardInterrupt

    world = World()
    world.disk = Breaking()
    world.committed = Committed(Value(), world.disk, durable=lambda value: value.kept)
    calls = [world.call("keep", name) for name in "abc"]
    world.end_write(well=True)
    world.end_write(well=True)
    assert [type(call.error) for call in calls] == 3 * [KeyboardInterrupt]
    assert world.value == Value()
    world.close()


def test_many_threads_and_a_disk_that_fails_at_random() -> None:
    random = Random(12)

    class Flaky(SlowDisk):
        def save(self, value: Value) -> None:
            time.sleep(random.random() / 2000)
            if random.random() < 0.2:
                raise Full("no room")
            self.saved = value.kept

    disk, numbers, lock = Flaky(), iter(range(10**6)), threading.Lock()
    committed = Committed(Value(), disk, durable=lambda value: value.kept)
    steps: dict[int, Step] = {}
    refused: set[int] = set()

    def call() -> None:
        with lock:
            number, kind = next(numbers), random.choice([*KINDS])
            step = steps[number] = KINDS[kind](number, random.choice("abcdefgh"))
        try:
            committed.change(step, lasting=kind != "drop")
        except (Full, Taken, Unknown):
            refused.add(number)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(call) for _ in range(2000)]:
            done.result()
    value, _ = committed.snapshot()
    replayed = Value()
    for number in value.log:
        replayed, _ = steps[number](replayed)
    assert value == replayed
    assert refused
    assert refused.isdisjoint(value.log)
