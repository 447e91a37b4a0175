"""A clock that a test turns, for a process that it starts (faketime(1)); the machine's own stays right.

    python -m tests.faults.clock MODULE ARGUMENT...

runs a module so that faketime 0.9.10 can bear it: of sleep until a time, as Python has it since 3.11, that
makes an error. Programs in Go, dockerd and etcd among them, read the machine's clock in any case.
"""

from __future__ import annotations

import os
import runpy
import select
import sys
import time
from pathlib import Path
from typing import SupportsFloat

DAY = 86400
_LIBRARY = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketimeMT.so.1")


class Clock:
    """The time of day for processes with *environment*; what measures durations stays right."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.turn(0)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(_LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def turn(self, seconds: int) -> None:
        """Let it be wrong by so many seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


def sleep(seconds: SupportsFloat) -> None:
    select.select([], [], [], float(seconds))


def main() -> None:
    del sys.argv[0]
    setattr(time, "sleep", sleep)  # noqa: B010 -- its arguments have no name
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
