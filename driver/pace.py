"""Turns for callers who must not come at once."""

from __future__ import annotations

import threading
import time


class Pace:
    """Lets callers go on one by one, some time apart. Safe for all threads."""

    def __init__(self, interval: float, longest: float) -> None:
        """*interval* is in seconds, as is *longest*, after which a caller goes on in any case."""
        self._interval = interval
        self._longest = longest
        self._lock = threading.Lock()
        self._free_at = 0.0

    def await_turn(self) -> None:
        """Return at once, or as soon as *interval* has passed since the last one's turn."""
        with self._lock:
            now = time.monotonic()
            turn = min(max(now, self._free_at), now + self._longest)
            self._free_at = turn + self._interval
        time.sleep(max(0.0, turn - time.monotonic()))
