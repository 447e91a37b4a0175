"""One value that all threads see and a disk keeps: one order of changes, one write for all that wait.

A change is a step from one value to the next, pure and quick. What must last is on disk before anybody sees
it, and before the call that asked for it returns. A write takes milliseconds, and other calls come
meanwhile. They queue, and then one of them writes for all (group commit; there is no thread for it). A
change that leaves the durable part alone does not wait for the disk: it goes ahead of the write.

Why this is right. Let V be the value that everybody sees, G the group of changes that is being written, and
Q the queue behind it. They change under one lock, which nobody holds while the disk works.

* There is one order. V becomes another value in two ways: the step of a change that goes ahead is applied
  to it, or the steps of G are, one after the other. What G makes of V is computed when the write begins, and
  again whenever a change goes ahead. So every value ever seen comes from the first one by a sequence of
  steps, each applied to what those before it had left.
* A change is on disk when its call returns. The durable part of what G makes of V is being written, and it
  stays the same until the write ends: a change may go ahead only if G yields the same durable part after it.
* What the disk refuses never was. V has not changed. G is applied to it once more, now without the changes
  that must last; those are refused. A change that failed only because of one of them is judged anew. Changes
  that need not last, since they only take away, are made in memory, and the next write includes them.
* No soft change is lost. One that goes ahead is made at once. One that does not, because it would alter what
  is being written or builds on what waits, is part of a later G, and the disk can refuse nothing of it.
* Calls take effect in the order in which they come, as far as it matters. A change goes ahead only if it
  leaves the durable part alone behind G and Q as well: a call that deletes what an earlier one is still
  creating waits for that one.
* No call waits for ever. The end of a write, good or bad, answers all of G. Calls in Q wait only while
  somebody writes, and the first of them to wake writes for all of Q: no call waits for more than two writes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")


class Disk(Protocol[S]):
    """Where the durable part of a value lives. What it raises is a sentence for the user."""

    def load(self) -> S | None:
        """Return the value saved last, None when there never was one; raise when it cannot be trusted."""

    def save(self, value: S) -> None:
        """Replace what is kept, and return when it would survive a power cut; raise when that fails."""


class _Answer(NamedTuple):
    """The result of one step."""

    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Change(Generic[S]):
    step: Callable[[S], tuple[S, Any]]
    lasting: bool
    done: bool = False
    """Whether what came of it is there for all to see."""
    answer: _Answer = field(default_factory=_Answer)


class _Outcome(NamedTuple, Generic[S]):
    """The value that some changes lead to, and an answer for each."""

    value: S
    answers: Sequence[_Answer]


class Committed(Generic[S]):
    """The value. Safe for all threads; readers never wait for the disk."""

    def __init__(self, value: S, disk: Disk[S], durable: Callable[[S], object]) -> None:
        """Begin with *value*, as it is on *disk*; *durable* returns the part that must be there."""
        self._current = (value, 1)
        self._disk = disk
        self._durable = durable
        self._turn = threading.Condition(threading.Lock())
        self._queue: list[_Change[S]] = []
        self._group: list[_Change[S]] = []
        """Empty while nobody writes."""
        self._next = _Outcome(value, ())
        """The group's outcome on the current value."""

    def snapshot(self) -> tuple[S, int]:
        """Return the value and its revision, which grows with every change."""
        return self._current

    def change(self, step: Callable[[S], tuple[S, T]], *, lasting: bool = True) -> tuple[T, int]:
        """Take a step; return its answer and a revision that contains it.

        A step returns the next value and an answer, and the very value that it was given when there is
        nothing to change. It may be applied several times, so it must do nothing else, and must not wait.
        What it raises is raised here, and nothing changes. So is what the disk raises, unless the change
        need not be *lasting*: then it is made in memory, and the next write includes it.
        """
        change = _Change(step, lasting)
        with self._turn:
            if not self._goes_ahead(change):
                self._queue.append(change)
                self._turn.wait_for(lambda: change.done or not self._group)
                if not change.done:
                    self._commit()
            revision = self._current[1]
        if change.answer.error is not None:
            raise change.answer.error
        return change.answer.value, revision

    def _goes_ahead(self, change: _Change[S]) -> bool:
        """Make *change* at once if a write under way need not know of it; tell whether it was made."""
        if not self._group:
            return False
        now = self._softly(change, self._current[0])
        if now is None or self._softly(change, self._apply(self._queue, self._next.value).value) is None:
            return False
        group = self._apply(self._group, now.value)
        if self._differ(group.value, self._next.value):
            return False
        self._publish([change], now)
        self._next = group
        return True

    def _softly(self, change: _Change[S], value: S) -> _Outcome[S] | None:
        """Apply *change*; return None when it fails or alters what must be on disk."""
        outcome = self._apply([change], value)
        return None if outcome.answers[0].error or self._differ(outcome.value, value) else outcome

    def _commit(self) -> None:
        """Make the queue the group, save its outcome, and publish that."""
        self._group, self._queue = self._queue, []
        self._next = self._apply(self._group, self._current[0])
        if self._differ(self._next.value, self._current[0]) and (refusal := self._write(self._next.value)):
            self._next = self._apply(self._group, self._current[0], refusal)
        self._publish(self._group, self._next)
        self._group = []
        self._turn.notify_all()

    def _write(self, value: S) -> BaseException | None:
        """Save *value* without the lock; return what prevented it, since all who wait must be told."""
        self._turn.release()
        try:
            self._disk.save(value)
        except BaseException as refusal:
            return refusal
        finally:
            self._turn.acquire()
        return None

    def _apply(
        self, changes: Sequence[_Change[S]], value: S, refusal: BaseException | None = None
    ) -> _Outcome[S]:
        """Apply *changes* in turn; after the disk's *refusal*, without those that must last."""
        answers = []
        for change in changes:
            try:
                after, answer = change.step(value)
                if refusal is not None and self._differ(after, value):
                    _bear(refusal, change)
            except BaseException as error:
                answers.append(_Answer(error=error))
            else:
                value = after
                answers.append(_Answer(answer))
        return _Outcome(value, answers)

    def _differ(self, one: S, other: S) -> bool:
        return one is not other and self._durable(one) != self._durable(other)

    def _publish(self, changes: Sequence[_Change[S]], outcome: _Outcome[S]) -> None:
        value, revision = self._current
        if outcome.value is not value:
            self._current = (outcome.value, revision + 1)
        for change, answer in zip(changes, outcome.answers, strict=True):
            change.answer, change.done = answer, True


def _bear(refusal: BaseException, change: _Change[Any]) -> None:
    if change.lasting:
        raise refusal
    log.warning("%s. What was removed stays removed in memory; the next change saves it", refusal)
