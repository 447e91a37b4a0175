"""Forgets networks, and VNIs given to networks, that the engine does not know.

An engine that was killed has forgotten its Swarm networks, and a call that was never answered may have
been the last about its network: no DeleteNetwork will come for either. Only doubtful networks are checked.

FreeNetwork goes to the leader alone. A manager that leads no more does not hear which networks were removed,
and may lead again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from typing import Final

from driver.swarm.docker_api import DockerApi, EngineAway
from driver.wish.state import without_allocation, without_ghost
from driver.wish.values import NetworkId
from driver.wish.wish import Wish
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_INTERVAL: Final = 30.0
"""Seconds between looks, and how long the engine may still be about to repeat a call."""


class Census:
    """A thread that asks the engine about networks that nothing has shown to be alive."""

    def __init__(self, wish: Wish, docker: DockerApi, *, interval: float = _INTERVAL) -> None:
        self._wish = wish
        self._docker = docker
        self._interval = interval
        self._complaint = ""
        self._thread = Supervised("lost-networks", self._turn)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread,)

    def start(self) -> None:
        """Begin to ask, after the first interval."""
        self._thread.start(self._interval)

    def stop(self) -> None:
        """End."""
        self._thread.stop()

    def _turn(self) -> float:
        try:
            self._look()
        except EngineAway as away:
            self._complain(f"the engine cannot be asked for its networks: {away}")
        return self._interval

    def _look(self) -> None:
        """Forget what the engine does not know, if it is the one that this host's networks were made by."""
        state = self._wish.state
        doubtful = [network for network in (*state.networks, *state.refused) if network in state.doubtful]
        asked = {*doubtful, *state.allocations}
        known = self._docker.known_networks(asked) if asked else frozenset()
        if not asked or known or self._docker.vouches() or self._docker.known_networks({*state.networks}):
            self._complaint = ""
            self._forget(asked - known)
            return
        self._complain(
            f"{self._docker.path}: the engine there knows no network of this host, so it may be another "
            "engine; PYOVERLAY_DOCKER_SOCKET names the right socket"
        )

    def _forget(self, gone: Collection[NetworkId]) -> None:
        state = self._wish.state
        for network in [one for one in gone if one in state.doubtful]:
            log.info("network %s: forgotten, since the engine does not know it", network)
            self._wish.change(partial(without_ghost, network=network), lasting=False)
        for network in set(state.allocations).intersection(gone):
            log.info("network %s: its VNIs are free, since the engine does not know it", network)
            self._wish.change(partial(without_allocation, network=network), lasting=False)

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.warning("no network is forgotten: %s", reason)
        self._complaint = reason
