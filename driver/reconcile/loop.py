"""The loop of a reconciler: wake, settle, audit, back off, survive.

A reconciler is one thread that keeps many items as they are wished: networks and the host, or containers'
sandboxes. For each item it keeps a Progress, which says when the item is due:

* its wish has changed: now, and before all others when somebody waits for it;
* all of it is to be looked at: because the kernel had news of it, or because it failed; then after a pause
  that doubles from try to try;
* its audit has come, for what no event told of. The audits of all items come at the same moments, so that an
  idle host is woken once for all of them, and they give way to everything else.

A turn of the thread goes through four steps:

1. Wake: take back the wake-up, before anything can fail. What comes from here on wakes the thread again.
2. Survey: if there is another wish, find the items whose part of it has changed.
3. Attend to one item, the one that has been due for longest. So whoever is in a hurry waits for the work on
   one other item at most.
4. Rest: when nothing but audits is due, take the kernel's news, and wait until something is due. Then settle
   for a moment: changes come in bursts.

Whatever an item raises is that item's own failure, expected or not: it is logged once, backs off and is
tried again, and the others are not affected. While an item fails as a whole, changes of its wish wait for the
next try, unless they are urgent. A fault outside of any item is the supervised thread's business.
"""

from __future__ import annotations

import io
import math
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from logging import ERROR, WARNING, getLogger
from typing import Generic, TypeVar

from driver.kernel.objects import Key
from driver.wish.errors import KernelError, unforeseen
from driver.wish.state import State
from driver.wish.wish import Wish
from lib.supervised import Supervised

log = getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
"""Seconds until an item that has failed is tried again: after the first failure, and at most."""
_SETTLE = 0.002
"""Seconds to wait for more of a burst of changes."""
_LONGEST_REST = 60.0
"""Seconds; poll knows no infinity."""


class Change(Enum):
    """How an item's part of the wish has changed since it was attended to last."""

    NONE = auto()
    SOME = auto()
    URGENT = auto()
    """Somebody waits for it, or what it failed for may be over."""


@dataclass(slots=True)
class Progress:
    """What has been done for one item, and when it is due again. Times are the clock's, in seconds."""

    revision: int = 0
    """The revision of the last wish that was tried, or that changed nothing here."""
    failure: KernelError | None = None
    """Why nothing could be done for it."""
    errors: Mapping[Key, KernelError] = field(default_factory=dict)
    """What could not be done, when the rest could."""
    held: bool = True
    """Whether there was anything of ours in its place at the last look; not known before the first."""
    changed_at: float = math.inf
    """When its wish was seen to have changed; minus infinity when that is urgent."""
    look_at: float = math.inf
    """When to look at all of it, sooner than at its audit."""
    audit_at: float = 0.0
    """When its audit comes; that of a new item is overdue."""
    pause: float = _FIRST_PAUSE
    """Between the next failure and the try that follows."""
    told: str = ""
    """The failure that was logged last."""

    @property
    def pressing_at(self) -> float:
        """When it is due, audits aside."""
        return min(self.changed_at, self.look_at)

    @property
    def due_at(self) -> float:
        """When it is due."""
        return min(self.changed_at, self.look_at, self.audit_at)

    @property
    def is_troubled(self) -> bool:
        """Whether it is not as the wish has it."""
        return self.failure is not None or bool(self.errors)

    def look(self, at: float) -> None:
        """Have all of it checked, no later than *at*."""
        self.look_at = min(self.look_at, at)


Item = TypeVar("Item", bound=Hashable)
P = TypeVar("P", bound=Progress)


class Reconciler(ABC, Generic[Item, P]):
    """Keeps the kernel equal to the wish, item by item, in a thread of its own.

    A subclass says what the items are and what reconciling one means; all its methods but those for other
    threads are called in that thread.
    """

    def __init__(
        self,
        name: str,
        wish: Wish,
        new_progress: Callable[[], P],
        *,
        audit_interval: float,
        clock: Callable[[], float],
    ) -> None:
        """*name* is the thread's; *audit_interval* is in seconds."""
        self._wish = wish
        self._new_progress = new_progress
        self._audit_interval = audit_interval
        self._clock = clock
        self._alarm: io.FileIO
        """From start to stop: readable when the thread is to be woken."""
        self._thread = Supervised(name, self._turn)
        self._progress: dict[Item, P] = {}
        """Changed by the thread alone, and with the lock held, since others read it."""
        self._revision = 0
        """The revision of the wish that was surveyed last."""
        self._outdated = False
        """Whether to survey the same wish again: what it is compared with has changed."""
        self._done = threading.Condition()
        self._began = clock()

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread,)

    def start(self) -> None:
        """Begin."""
        self._alarm = new_alarm()
        self._wish.subscribe(self._wake)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is in the kernel stays as it is."""
        self._thread.end()
        self._wake()
        self._thread.join()
        self._alarm.close()

    def wait_tried(self, revision: int, timeout: float) -> bool:
        """Wait until all that *revision* asks for was tried; return False after *timeout* seconds."""
        with self._done:
            return self._done.wait_for(lambda: self._tried() >= revision, timeout)

    @abstractmethod
    def _survey(self, state: State, revision: int) -> Mapping[Item, Change]:
        """Return all items in the wish or with something left, and whether their wish has changed.

        The progress of all others is forgotten.
        """

    @abstractmethod
    def _reconcile(self, item: Item, progress: P, *, whole: bool) -> Mapping[Key, KernelError]:
        """Make the kernel hold what the wish surveyed last asks for *item*; return what could not be done.

        With *whole*, check all of it, else at least what has changed. Whatever it raises means that nothing
        could be done.
        """

    @abstractmethod
    def _await_news(self, timeout: float, wake: int) -> bool:
        """Wait for the kernel's news, for *wake* to be readable, or for *timeout* seconds.

        Returns whether somebody is in a hurry, so that the thread must not settle first.
        """

    @abstractmethod
    def _label(self, item: Item) -> str:
        """Return the name of *item* for people."""

    def _reason(self, errors: Mapping[Key, KernelError]) -> str:
        """Describe *errors*, of which there is at least one; an empty answer is not logged."""
        key, error = next(iter(errors.items()))
        return f"{key.kind.word} {key.name}: {error} ({len(errors)} in all)"

    def _wake(self) -> None:
        with suppress(ValueError):  # stopped
            self._alarm.write((1).to_bytes(8, sys.byteorder))

    def _tried(self) -> int:
        """Return the revision of the wish up to which everything was tried."""
        return min([self._revision, *(progress.revision for progress in self._progress.values())])

    def _turn(self) -> float:
        self._alarm.read(8)
        self._survey_wish()
        now = self._clock()
        due = [item for item, progress in self._progress.items() if progress.due_at <= now]
        if due:
            self._attend(min(due, key=self._due_since))
        if all(progress.pressing_at > self._clock() for progress in self._progress.values()):
            self._rest()
        return 0.0

    def _due_since(self, item: Item) -> float:
        """Return for how long to take *item* as due; an audit has time until the next one."""
        progress = self._progress[item]
        return min(progress.pressing_at, progress.audit_at + self._audit_interval)

    def _next_audit(self, now: float) -> float:
        return now - (now - self._began) % self._audit_interval + self._audit_interval

    def _survey_wish(self) -> None:
        """See what must be done for a changed wish, and note where nothing must."""
        state, revision = self._wish.snapshot()
        if revision == self._revision and not self._outdated:
            return
        changes = self._survey(state, revision)
        self._outdated = False
        now = self._clock()
        with self._done:
            for item in self._progress.keys() - changes.keys():
                del self._progress[item]
            for item, change in changes.items():
                progress = self._progress.get(item) or self._new_progress()
                self._progress[item] = progress
                progress.changed_at = _changed_at(progress, change, now)
                if progress.changed_at == math.inf:
                    progress.revision = revision
            self._revision = revision
            if all(progress.changed_at == math.inf for progress in self._progress.values()):
                self._done.notify_all()  # else whoever waits is told when the first of them is done

    def _attend(self, item: Item) -> None:
        """Reconcile one item. Its failure must not affect the others."""
        progress, now = self._progress[item], self._clock()
        whole = min(progress.look_at, progress.audit_at) <= now
        progress.changed_at = math.inf
        if whole:
            progress.look_at = math.inf
            progress.audit_at = self._next_audit(now)
        errors: Mapping[Key, KernelError] = {}
        failure: KernelError | None = None
        try:
            errors = self._reconcile(item, progress, whole=whole)
        except Exception as error:
            failure = _failure(error)
            self._tell(item, progress, str(failure), unforeseen(error))
        else:
            self._tell(item, progress, self._reason(errors) if errors else "", None)
        self._settle(progress, failure, errors)

    def _settle(self, progress: P, failure: KernelError | None, errors: Mapping[Key, KernelError]) -> None:
        """Record the result, for those who wait; what failed is due again after its pause."""
        with self._done:
            progress.revision, progress.failure, progress.errors = self._revision, failure, errors
            self._done.notify_all()
        if progress.is_troubled:
            progress.look(self._clock() + progress.pause)
            progress.pause = min(2 * progress.pause, _LONGEST_PAUSE)
        else:
            progress.pause = _FIRST_PAUSE

    def _tell(self, item: Item, progress: P, reason: str, trace: Exception | None) -> None:
        """Log why *item* fails, if there is a *reason*: not at each try."""
        if reason and reason != progress.told:
            log.log(ERROR if trace else WARNING, "%s: %s", self._label(item), reason, exc_info=trace)
        progress.told = reason

    def _rest(self) -> None:
        """Take the kernel's news, and wait until something is due or changes."""
        due_at = min([progress.due_at for progress in self._progress.values()], default=math.inf)
        seconds = min(max(0.0, due_at - self._clock()), _LONGEST_REST)
        with self._thread.waiting():
            is_urgent = self._await_news(seconds, self._alarm.fileno())
        if seconds and not is_urgent and not self._thread.stopping:
            time.sleep(_SETTLE)


def new_alarm() -> io.FileIO:
    """Open what wakes a thread that polls: readable once it was written to."""
    return io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")


def _changed_at(progress: Progress, change: Change, now: float) -> float:
    """Return when the item is due for its change: while it fails, only with the next try."""
    if change is Change.URGENT:
        return -math.inf
    if change is Change.SOME and progress.failure is None:
        return min(progress.changed_at, now)
    return math.inf


def _failure(error: Exception) -> KernelError:
    """Return what to keep of *error*: its own traceback would hold on to all that was read."""
    if unforeseen(error):
        return KernelError(f"unexpected fault: {type(error).__name__}: {error}")
    return KernelError(str(error), getattr(error, "errno", 0))
