"""Turns for callers who must not all go at once."""

from __future__ import annotations

import random
import threading
import time


class Pace:
    """Lets callers pass one by one, a random time apart. Safe for all threads.

    Random, because several hosts that start together would otherwise stay in step.
    """

    def __init__(self, shortest: float, longest: float, patience: float) -> None:
        """Turns are *shortest* to *longest* seconds apart; after *patience* a caller passes in any case."""
        self._shortest = shortest
        self._longest = longest
        self._patience = patience
        self._lock = threading.Lock()
        self._free_at = 0.0

    def await_turn(self) -> None:
        """Return at once, or when the pause drawn at the previous turn is over."""
        with self._lock:
            now = time.monotonic()
            turn = min(max(now, self._free_at), now + self._patience)
            self._free_at = turn + random.uniform(self._shortest, self._longest)  # noqa: S311 - no secret
        time.sleep(max(0.0, turn - time.monotonic()))
