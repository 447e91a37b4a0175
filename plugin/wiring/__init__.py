"""The composition root: which parts there are, and how they fit together, by itself and in a Swarm."""

from __future__ import annotations

from collections.abc import Callable

from plugin.settings import Settings
from plugin.wiring import single, swarm
from plugin.wiring.runtime import Runtime


def make_runtime(settings: Settings, restart: Callable[[str], None]) -> Runtime:
    """Make what the host needs now; *restart* ends the process, with a reason, so that it is restarted.

    Raises driver and ipam errors when what is on disk cannot be used.
    """
    wire = swarm.wire if settings.in_swarm else single.wire
    return wire(settings, restart)
