"""Threads that neither end unnoticed nor spin, and whose state can be read.

A thread calls its *turn* again and again. A turn does one piece of work and returns for how many seconds
there is nothing more to do; `wake` ends that pause early. Expected faults are the turn's own business. An
unexpected one is logged, and the turn is repeated after a pause. The pause grows while the turn keeps
failing, and `wake` does not shorten it: whatever wakes a failing thread may do so all the time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
"""Seconds; also how long a thread must work without a fault before its pauses start over."""
_SAY_AGAIN: Final = 600.0
"""Seconds until the same failure is logged once more."""


class Doing(StrEnum):
    """What a thread is doing."""

    NOTHING = "not started"
    RUNNING = "running"
    WAITING = "waiting"
    FAILING = "failing"
    """Its last attempt failed, and none since has got far enough to wait for new work."""
    ENDED = "ended"


class ThreadState(NamedTuple):
    """How a thread fares."""

    name: str
    doing: Doing
    since: float
    """When it began to do so, by time.monotonic()."""
    failures: int = 0
    """How often it has failed in all."""
    reason: str = ""
    """Why it last failed, which may be over."""


class Supervised:
    """A daemon thread that calls *turn* until it is told to end.

    `waiting` and `failed` are for the turn, all else is for other threads.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], float],
        *,
        settle: float = 0.0,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """*turn* returns the seconds until the next one; math.inf means when woken.

        After `wake` the next turn comes *settle* seconds later, so that there is one for a whole burst.
        *at_end* is called last of all, in the thread itself.
        """
        self._turn = turn
        self._settle = settle
        self._at_end = at_end
        self._changed = threading.Condition()
        self._stopping = False
        self._woken = False
        self._first_after = 0.0
        self._pause = _FIRST_PAUSE
        self._resumed_at = -math.inf
        self._said, self._said_at = "", -math.inf
        self._state = ThreadState(name, Doing.NOTHING, time.monotonic())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def state(self) -> ThreadState:
        """Its state at this moment."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it was told to end: a long turn checks this now and then."""
        return self._stopping

    @property
    def woken(self) -> bool:
        """Whether it was woken after its present turn, or its last one, began."""
        return self._woken

    def start(self, after: float = 0.0) -> None:
        """Begin; the first turn comes *after* so many seconds, or when woken."""
        self._first_after = after
        self._thread.start()

    def wake(self) -> None:
        """Have the next turn come now; what was changed before this call is seen by it."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def end(self) -> None:
        """Have no further turn begin; returns at once. A turn may say so itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most *timeout* seconds; return whether it has, or never began."""
        if self.alive:
            self._thread.join(timeout)
        return not self.alive

    def stop(self, timeout: float | None = None) -> bool:
        """Do both: `end` and `join`."""
        self.end()
        return self.join(timeout)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within a turn, wait for something to do: whatever failed before has now succeeded."""
        self._become(Doing.WAITING)
        try:
            yield
        finally:
            self._become(Doing.RUNNING)

    def failed(self, error: Exception) -> None:
        """Record and log an unexpected fault that the turn itself survives.

        The first one is logged with its traceback, the same one again only after a while.
        """
        now, before = time.monotonic(), self._state
        reason = f"{type(error).__name__}: {error}"
        since = before.since if before.doing is Doing.FAILING else now
        self._state = ThreadState(before.name, Doing.FAILING, since, before.failures + 1, reason)
        if reason != self._said or now - self._said_at > _SAY_AGAIN:
            self._said, self._said_at = reason, now
            log.error(
                "unexpected fault in thread %r, which continues: %s", before.name, reason, exc_info=error
            )

    def _run(self) -> None:
        """Go from turn to turn. One sees all that was before it began, so it takes earlier wake-ups."""
        try:
            self._rest(self._first_after)
            while not self._stopping:
                self._woken = False
                try:
                    pause = self._turn()
                except Exception as error:
                    self._back_off(error)
                else:
                    self._rest(pause)
            self._finish()
        finally:
            self._become(Doing.ENDED)

    def _rest(self, seconds: float) -> None:
        """Wait for the next turn, after one that succeeded."""
        if seconds > 0:
            with self.waiting(), self._changed:
                limit = None if seconds == math.inf else seconds
                if self._changed.wait_for(lambda: self._stopping or self._woken, limit):
                    self._changed.wait_for(lambda: self._stopping, self._settle)
        self._become(Doing.RUNNING)

    def _back_off(self, error: Exception) -> None:
        self.failed(error)
        if time.monotonic() - self._resumed_at > _LONGEST_PAUSE:
            self._pause = _FIRST_PAUSE
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._resumed_at = time.monotonic()

    def _finish(self) -> None:
        if self._at_end is not None:
            try:
                self._at_end()
            except Exception as error:
                self.failed(error)

    def _become(self, doing: Doing) -> None:
        name, before, _, failures, reason = self._state
        if doing is not before:
            self._state = ThreadState(name, doing, time.monotonic(), failures, reason)
