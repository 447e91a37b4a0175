"""Logging of the process: one line per event, sent where dockerd gives it the right level."""

from __future__ import annotations

import logging
import sys


class OneLine(logging.Formatter):
    """Time, level, logger, message; whatever has several lines becomes one.

    dockerd makes an entry of every line (moby `daemon/pkg/plugin/manager.go`: makeLoggerStreams), and
    text from a request must not be able to fake one.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format *record* without line breaks or other control characters."""
        lines = (line for line in super().format(record).splitlines() if line.strip())
        return "".join(char if char.isprintable() else "?" for char in " | ".join(lines))


def set_up(level: str) -> None:
    """Send all loggers' events of *level* and above to stdout, from warnings on to stderr.

    dockerd logs a plugin's stdout as information and its stderr as errors.
    """
    calm, loud = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    calm.addFilter(lambda record: record.levelno < logging.WARNING)
    loud.setLevel(logging.WARNING)
    for handler in (calm, loud):
        handler.setFormatter(OneLine())
    logging.basicConfig(level=level.upper(), handlers=(calm, loud), force=True)
    # At debug level these log every connection and all of their own settings.
    for name in ("gunicorn.error", "urllib3", "werkzeug", "asyncio", "pyroute2"):
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else logging.WARNING)
