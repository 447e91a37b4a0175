"""What the plugin on the Swarm's leader knows of services: asks its engine, and has it published.

The engine tells of services as they change, but never of tasks: so it is asked, often while something is
about to change, and never for more than a small part of the time. When it cannot be asked, or answers badly,
what was said last stays.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Final

from driver.control import Offer
from driver.store import Store
from driver.swarm import vips
from driver.swarm.engine import Engine, EngineAway, Leadership, SwarmFacts

log = logging.getLogger(__name__)

_SHORTEST: Final = 0.5
"""Seconds between two looks. A task that is to stop is stopped two seconds after the manager's decision (moby
daemon/cluster/executor/container/controller.go: Shutdown): until then everybody must know."""
_LONGEST: Final = 10.0
_FACTS: Final = 10.0
"""Seconds between questions whether this node is a manager at all."""
_SHARE_AT_REST, _SHARE = 0.02, 0.2
"""Parts of the time that looks may take."""


class ServiceWatch:
    """A thread that puts into the state what this host has to say as the Swarm's leader."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._facts = SwarmFacts()
        self._facts_until = 0.0
        self._complaint = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="services", daemon=True)

    def start(self) -> None:
        """Begin to ask the engine, which need not be up yet."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was said stays."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = _SHORTEST
        while not self._stopped.wait(pause):
            try:
                pause = self._look()
                self._complaint = ""
            except EngineAway as away:
                pause = 1.0
                self._complain(str(away))
            except Exception:  # a thread that ends leaves everybody with the last known table
                pause = _LONGEST
                log.exception("looking after services failed in a way that was not foreseen")

    def _look(self) -> float:
        """Ask the engine once; return after how many seconds to ask again. Raises EngineAway."""
        if time.monotonic() >= self._facts_until:
            self._facts = self._engine.info()
            self._facts_until = time.monotonic() + _FACTS
        leadership = self._engine.leadership(self._facts)
        if leadership is Leadership.YES:
            return self._ask()
        if leadership is Leadership.NO:
            self._say({})
        return 1.0 if self._facts.manager else _FACTS

    def _ask(self) -> float:
        since = time.monotonic()
        networks = vips.our_networks(self._engine.list("networks", scope=["swarm"]))
        services = self._engine.list("services") if networks else []
        tasks = self._engine.list("tasks", desired_state=["running"]) if services else []
        self._say(vips.offer(networks, services, tasks))
        share = _SHARE_AT_REST if vips.is_settled(services, tasks) else _SHARE
        return min(_LONGEST, max(_SHORTEST, (time.monotonic() - since) / share))

    def _say(self, offer: Offer) -> None:
        if offer != self._store.state.offer:
            self._store.update(lambda state: replace(state, offer=offer))

    def _complain(self, reason: str) -> None:
        if reason != self._complaint and self._store.state.offer:
            log.warning(
                "the engine cannot be asked for services and tasks: %s. Virtual addresses go on with what "
                "was known last; if it lasts, use --endpoint-mode dnsrr",
                reason,
            )
        self._complaint = reason
