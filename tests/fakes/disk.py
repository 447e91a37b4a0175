"""A disk in memory."""

from __future__ import annotations

from driver.wish.disk import decode, encode
from driver.wish.state import State


class MemoryDisk:
    """Keeps the state for as long as the test has it."""

    def __init__(self, state: State | None = None) -> None:
        self.saved = state

    def load(self) -> State | None:
        return self.saved

    def save(self, state: State) -> None:
        """Remember the durable part of *state*, as a file would."""
        self.saved = decode(encode(state))
