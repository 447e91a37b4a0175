"""The one place that holds the state: transactions, revisions, who is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from driver.wish.disk import Disk, load_or_new
from driver.wish.errors import DiskError
from driver.wish.state import State, after_restart

log = logging.getLogger(__name__)


class Wish:
    """The current state. Safe for all threads; its lock is held for one transition and one file write.

    Who only looks does not wait for the disk.
    """

    def __init__(self, disk: Disk) -> None:
        """Load the state; raises DiskError when what is on disk cannot be used."""
        self._disk = disk
        self._lock = threading.Lock()
        self._current = (after_restart(load_or_new(disk)), 1)
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have *listener* called, without the lock, after every change; it must return at once."""
        self._listeners.append(listener)

    def snapshot(self) -> tuple[State, int]:
        """Return the state and its revision, which grows with every change."""
        return self._current

    @property
    def state(self) -> State:
        """The current state."""
        return self._current[0]

    def change(self, transition: Callable[[State], State], *, lasting: bool = True) -> int:
        """Apply a pure transition and return the revision that contains it.

        What the transition raises is raised here and nothing changes. A change of the durable
        part is on disk when this returns; DiskError means that nothing changed.

        One that only takes away need not be *lasting*: what the disk refuses is written with the
        next change. The engine says Leave and Delete once, and a new process finds by itself that
        what the old record names has ended.
        """
        with self._lock:
            before, revision = self._current
            after = transition(before)
            if after == before:
                return revision
            if after.durable() != before.durable():
                self._save(after, lasting=lasting)
            revision += 1
            self._current = (after, revision)
        for listener in self._listeners:
            listener()
        return revision

    def _save(self, state: State, *, lasting: bool) -> None:
        try:
            self._disk.save(state)
        except DiskError as error:
            if lasting:
                raise
            log.warning("%s. What has ended has ended all the same", error)
