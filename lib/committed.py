"""One value shared by all threads and kept on disk: changes in one order, one write for all that wait.

A change is a step from one value to the next, pure and quick. What must last is on the disk before anybody
sees it and before the call that asked for it returns. A write takes milliseconds, during which others arrive;
they queue, and the next write is one for all of them, done by one of their own threads. A change that
leaves the durable part alone does not wait: it goes ahead of the write.

Why this is right. *V* is the value that everybody sees, *G* the group of changes being written, *Q* the
queue behind it. All three change under the lock only, which nobody holds while the disk works.

* One order. V becomes another value in two ways: the step of a change that goes ahead is applied to
  it, or the steps of G in turn. G's outcome on V is computed when the write begins, and again whenever a
  change goes ahead of it. So every value ever seen comes from the first one by the steps so far, each
  applied to the result of those before it.
* On disk at return. What is being written is the durable part of G's outcome on V. It stays that for as
  long as the write takes: a change goes ahead only when G applied after it has the same durable part.
* What the disk refuses has never happened. V is as it was; G is applied to it again without the changes that
  had to last. Those that failed only because of a refused one now succeed or are refused themselves. Those
  that only remove something stay, in memory alone, and the next write includes them.
* No soft change is lost or held up: it goes ahead, whatever the disk does, or is part of a G, of which only
  what had to last can be refused.
* The order of arrival. A change goes ahead only when it leaves the durable part alone after all of G
  and Q, too: a deletion of what another change is about to create waits for that change.
* Nobody waits for ever. Each write ends, and its end answers all of G. A change in Q waits only while
  another thread writes, and the first to wake writes for all of Q: at most two writes in all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    answer: _Answer | None = None
    """None until the result is visible to all."""


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
        What it raises is raised here and nothing changes. So is what the disk raises, unless the change
        need not be *lasting*: then it is made in memory, and the next write includes it.
        """
        change = _Change(step, lasting)
        with self._turn:
            if not self._goes_ahead(change):
                self._queue.append(change)
                self._turn.wait_for(lambda: change.answer is not None or not self._group)
                if change.answer is None:
                    self._commit()
            revision = self._current[1]
        value, error = change.answer or _Answer()
        if error is not None:
            raise error
        return value, revision

    def _goes_ahead(self, change: _Change[S]) -> bool:
        """Make *change* ahead of the current write if it does not affect it; tell whether it was made."""
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
            change.answer = answer


def _bear(refusal: BaseException, change: _Change[Any]) -> None:
    if change.lasting:
        raise refusal
    log.warning("%s. What was removed stays removed in memory; the next change saves it", refusal)
