"""What the plugin on the Swarm's leader knows of services: asks its engine, and has it published.

The engine tells of services as they change, but never of tasks: so it is asked, often while something is
about to change, and never for more than a small part of the time. When it cannot be asked, or answers badly,
what was said last stays.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import replace
from typing import Final

from driver.swarm import vips
from driver.swarm.docker_api import DockerApi, EngineAway, Events, Leadership, SwarmFacts
from driver.wish.records import Offer
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

_SHORTEST: Final = 0.5
"""Seconds between two looks while something is about to change. A task that is to stop is stopped two
seconds after the decision (moby daemon/cluster/executor/container/controller.go: Shutdown): by then all must
know."""
_AT_REST: Final = 1.0
_STIR: Final = 3.0
"""Seconds after an event in which its consequences show."""
_LONGEST: Final = 10.0
_FACTS: Final = 10.0
"""Seconds between questions whether this node is a manager at all."""
_RETRY: Final = 1.0
_SETTLE: Final = 0.05
"""Seconds to wait for more of a burst of events."""
_STOP: Final = 1.0
_SHARE_AT_REST, _SHARE = 0.02, 0.2
"""Parts of the time that looks may take."""


class ServiceWatch:
    """Puts into the state what this host has to say as the Swarm's leader.

    One thread looks; while we lead, another listens to the engine's events, and has the first look at once.
    """

    def __init__(self, wish: Wish, docker: DockerApi) -> None:
        self._wish = wish
        self._docker = docker
        self._facts = SwarmFacts()
        self._facts_until = 0.0
        self._stirred_at = -math.inf
        self._complaint = ""
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._leads = threading.Event()
        self._events: Events | None = None
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._run, "services"), (self._listen, "service-events"))
        ]

    def start(self) -> None:
        """Begin to ask the engine, which need not be up yet."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what was said stays."""
        self._stopped.set()
        self._wake.set()
        deadline = time.monotonic() + _STOP
        while time.monotonic() < deadline and any(thread.is_alive() for thread in self._threads):
            self._leads.set()
            if events := self._events:
                events.close()
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                pause = self._look()
                self._complaint = ""
            except EngineAway as away:
                pause = _RETRY
                self._complain(str(away))
            except Exception:  # a thread that ends leaves everybody with the last known table
                pause = _LONGEST
                log.exception("looking after services failed in a way that was not foreseen")
            if self._wake.wait(pause) and not self._stopped.is_set():
                time.sleep(_SETTLE)
                self._wake.clear()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            self._leads.wait()
            try:
                self._events = self._docker.events("service", "node", "network")
                while self._leads.is_set():
                    self._events.await_event()
                    self._stirred_at = time.monotonic()
                    self._wake.set()
            except EngineAway as away:
                log.debug("no news of services: %s", away)
                self._stopped.wait(_RETRY)
            finally:
                if self._events:
                    self._events.close()
                    self._events = None

    def _look(self) -> float:
        """Ask the engine once; return after how many seconds to ask again. Raises EngineAway."""
        if time.monotonic() >= self._facts_until:
            self._facts = self._docker.info()
            self._facts_until = time.monotonic() + _FACTS
        leadership = self._docker.leadership(self._facts)
        if leadership is Leadership.YES:
            self._leads.set()
            return self._ask()
        if leadership is Leadership.NO:
            self._leads.clear()
            self._say({})
        return _RETRY if self._facts.manager else _FACTS

    def _ask(self) -> float:
        since = time.monotonic()
        networks = vips.our_networks(self._docker.list("networks", scope=["swarm"]))
        services = self._docker.list("services") if networks else []
        tasks = self._docker.list("tasks", desired_state=["running"]) if services else []
        offer = vips.offer(networks, services, tasks)
        self._say(offer)
        if not any(offer.values()):
            return _LONGEST  # events tell of the first service
        if vips.is_settled(services, tasks) and since - self._stirred_at > _STIR:
            return min(_LONGEST, max(_AT_REST, (time.monotonic() - since) / _SHARE_AT_REST))
        return max(_SHORTEST, (time.monotonic() - since) / _SHARE)

    def _say(self, offer: Offer) -> None:
        if offer != self._wish.state.offer:
            self._wish.change(lambda state: replace(state, offer=offer))

    def _complain(self, reason: str) -> None:
        if reason != self._complaint and self._wish.state.offer:
            log.warning(
                "the engine cannot be asked for services and tasks: %s. Virtual addresses go on with what "
                "was known last; if it lasts, use --endpoint-mode dnsrr",
                reason,
            )
        self._complaint = reason
