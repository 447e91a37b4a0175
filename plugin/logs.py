"""Logging of the process: one line an event, to where dockerd gives it the right level.

It can neither block nor kill. dockerd gives a plugin's output up at a line of 64 KiB (moby
`daemon/pkg/plugin/manager.go`: makeLoggerStreams, with a bufio.Scanner), and an engine that hangs, or is
stopped, reads nothing. So lines are short, and the pipe itself is the queue: a write that would have to wait
fails, the line is dropped and counted, and the next line that finds room comes after one that says how many
are missing. There is no thread to outlive, and nothing to flush at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import select
import stat
import sys
from typing import IO

from lib.bounded import bounded

LINE = select.PIPE_BUF - 256
"""Bytes of a line. With one more that says what is missing it is within what a pipe takes wholly or not at
all (pipe(7)): lines of our two processes never mix, and none is there by half."""
_QUEUE = 1 << 20
"""Bytes that a pipe may hold unread; the most that the kernel grants without being told to."""


class OneLine(logging.Formatter):
    """Time, level, logger, message; whatever has several lines becomes one.

    dockerd makes an entry of every line, and text that comes in with a request must not be able to fake one.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format *record* without line breaks or other control characters."""
        lines = (line for line in super().format(record).splitlines() if line.strip())
        return "".join(char if char.isprintable() else "?" for char in " | ".join(lines))


class PatientHandler(logging.Handler):
    """Writes lines to one stream, unless it would have to wait."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._output = _never_waiting(stream)
        self._dropped = 0
        self.setFormatter(OneLine())

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception as error:  # logging would print a traceback, and wait for it to be read
            line = f"ERROR {record.name}: {record.msg!r} cannot be logged: {error}"
        if self._write(self._missing() + bounded(line, LINE) + b"\n"):
            self._dropped = 0
        else:
            self._dropped += 1

    def close(self) -> None:
        """Give the descriptor back."""
        if isinstance(self._output, io.FileIO):
            self._output.close()
        super().close()

    def _missing(self) -> bytes:
        """Return a line that says how many are missing; it is written together with the next one, or not."""
        if not self._dropped:
            return b""
        text = f"{self._dropped} lines are missing here: nobody has read the log for a while"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)
        return self.format(record).encode() + b"\n"

    def _write(self, data: bytes) -> bool:
        """Write *data*; return whether there was room for it."""
        try:
            return self._output.write(data) is not None
        except OSError:  # nobody will ever read it: the pipe is closed, the disk is full
            return False


def _never_waiting(stream: IO[str]) -> io.RawIOBase:
    """Return an output to where *stream* goes whose write returns None when it would have to wait."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # it is in memory
        return stream.buffer  # type: ignore[attr-defined, no-any-return]
    return io.FileIO(_opened(descriptor), "w")


def _opened(descriptor: int) -> int:
    """Return a descriptor for the same file that does not wait; other holders' flags stay if they can.

    Of a regular file it is the same: another one would not share its position, and no disk waits for readers.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.dup(descriptor)
    try:
        opened = os.open(
            f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        )
    except OSError:  # a socket, such as systemd's, can only be had once
        os.set_blocking(descriptor, False)
        return os.dup(descriptor)
    with contextlib.suppress(OSError):  # no pipe, or too many are in use
        fcntl.fcntl(opened, fcntl.F_SETPIPE_SZ, _QUEUE)
    return opened


def set_up(level: str) -> None:
    """Send all loggers' events of *level* and above to stdout, from warnings on to stderr.

    dockerd logs a plugin's stdout as information and its stderr as errors.
    """
    calm, loud = PatientHandler(sys.stdout), PatientHandler(sys.stderr)
    calm.addFilter(lambda record: record.levelno < logging.WARNING)
    loud.setLevel(logging.WARNING)
    logging.basicConfig(level=level.upper(), handlers=(calm, loud), force=True)
    # At debug level these log every connection and all of their own settings.
    for name in ("gunicorn.error", "urllib3", "werkzeug", "asyncio", "pyroute2"):
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else logging.WARNING)
