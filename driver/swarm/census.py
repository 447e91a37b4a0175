"""Forgets networks that the engine does not know.

An engine that was killed has forgotten its Swarm networks, and a call that was never answered may have
been the last about its network: no DeleteNetwork will come for either. Only doubtful ones are asked for.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import Final

from driver.swarm.docker_api import DockerApi, EngineAway
from driver.wish.state import without_ghost
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

_INTERVAL: Final = 30.0
"""Seconds between looks, and for which the engine may still be about to repeat a call."""


class Census:
    """A thread that asks the engine about networks which nobody has shown to live."""

    def __init__(self, wish: Wish, docker: DockerApi, *, interval: float = _INTERVAL) -> None:
        self._wish = wish
        self._docker = docker
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="census", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._look()
            except EngineAway as away:
                log.debug("the engine is not asked for its networks: %s", away)

    def _look(self) -> None:
        state = self._wish.state
        for network in [network for network in state.networks if network in state.doubtful]:
            if not self._docker.knows_network(network):
                log.info("network %s: the engine does not know it (any more): forgotten", network)
                self._wish.change(partial(without_ghost, network=network), lasting=False)
