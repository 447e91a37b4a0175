"""Turns for callers who must not come at once."""

from __future__ import annotations

import threading
import time


class Pace:
    """Lets callers go on one by one, some time apart. Safe for all threads."""

    def __init__(self, interval: float) -> None:
        """*interval* is in seconds."""
        self._interval = interval
        self._lock = threading.Lock()
        self._free_at = 0.0

    def await_turn(self) -> None:
        """Return at once, or as soon as *interval* has passed since the last one's turn."""
        with self._lock:
            turn = max(time.monotonic(), self._free_at)
            self._free_at = turn + self._interval
        time.sleep(max(0.0, turn - time.monotonic()))
