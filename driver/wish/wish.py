"""The one place that holds the state: transactions, revisions, listeners."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from driver.wish.disk import load_or_new
from driver.wish.state import State, after_restart
from lib.committed import Committed, Disk

T = TypeVar("T")


class Wish:
    """The current state. Safe for all threads; readers never wait for the disk."""

    def __init__(self, disk: Disk[State]) -> None:
        """Load the state; raises DiskError when what is on disk cannot be used."""
        self._committed = Committed(after_restart(load_or_new(disk)), disk, State.durable)
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have *listener* called, without a lock, after every change; it must return at once."""
        self._listeners.append(listener)

    def snapshot(self) -> tuple[State, int]:
        """Return the state and its revision, which grows with every change."""
        return self._committed.snapshot()

    @property
    def state(self) -> State:
        """The current state."""
        return self.snapshot()[0]

    def change(self, transition: Callable[[State], State], *, lasting: bool = True) -> int:
        """Apply a pure transition and return a revision that contains it.

        What the transition raises is raised here and nothing changes. A change of the durable
        part is on disk when this returns; DiskError means that nothing changed. One that leaves
        the durable part alone does not wait for the disk.

        One that only removes something need not be *lasting*: what the disk refuses is written with the
        next change. The engine sends Leave and Delete only once, and a new process finds out by itself
        that what the old record names has ended.
        """

        def step(state: State) -> tuple[State, None]:
            after = transition(state)
            return (state if after == state else after), None

        return self._change(step, lasting=lasting)[1]

    def decide(self, step: Callable[[State], tuple[State, T]]) -> T:
        """Apply a transition that also has an answer, and return that.

        Like `change`, but anything except the very state that it got counts as a change.
        """
        return self._change(step, lasting=True)[0]

    def _change(self, step: Callable[[State], tuple[State, T]], *, lasting: bool) -> tuple[T, int]:
        _, before = self.snapshot()
        answer, revision = self._committed.change(step, lasting=lasting)
        if revision > before:  # the listeners have been told when this returns, whichever thread wrote it
            for listener in self._listeners:
                listener()
        return answer, revision
