"""What works less well on this kernel than it could: logged once, not by each of a thousand sockets."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


def degraded(consequence: str, cause: OSError) -> None:
    """Warn, once per process, of a *consequence* that the operator may notice."""
    _warn(f"{consequence}; the kernel said: {cause.strerror}")


@cache
def _warn(text: str) -> None:
    log.warning("%s", text)
