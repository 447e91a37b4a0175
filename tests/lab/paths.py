"""Where the lab keeps what it made: one cache folder in the repository, ignored by git."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PYOLAB_CACHE", REPO / ".cache" / "lab")).resolve()
LABS = CACHE / "labs"
LOGS = CACHE / "logs"
DETACHED = CACHE / "detached.json"

PREFIX = "pyolab"
"""Every name the lab gives to something of the machine (cgroup, host name, process title) begins with it."""


def say(text: str) -> None:
    """Progress goes to stderr, so that a command's own output stays clean."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time makes the thing `name`; the kernel drops the lock if we are killed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
