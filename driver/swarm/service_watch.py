"""What the plugin on the Swarm's leader knows about services: asks its engine, and publishes the answer.

The same answers tell it the Swarm's VXLAN port, which new networks get, and the engine's version.

The engine has events for services, but none for tasks: so it is asked, often while something is about to
change, and never for more than a small part of the time. When it cannot be asked, or answers badly, what
was published last stays.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Final

from driver.swarm import vips
from driver.swarm.docker_api import DockerApi, EngineAway, Events, Leadership, SwarmFacts
from driver.wish.records import Offer
from driver.wish.wish import Wish
from lib.supervised import Supervised

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
"""Seconds between checks whether this node is a manager at all."""
_RETRY: Final = 1.0
_SETTLE: Final = 0.05
"""Seconds to wait for more of a burst of events."""
_STOP: Final = 1.0
_SHARE_AT_REST, _SHARE = 0.02, 0.2
"""What part of the time looks may take: one in so many."""


class ServiceWatch:
    """Puts into the state what this host has to say as the Swarm's leader.

    One thread looks; while we lead, another listens to the engine's events, and has the first look at once.
    """

    def __init__(
        self, wish: Wish, docker: DockerApi, *, note_version: Callable[[tuple[int, int]], None]
    ) -> None:
        """*note_version* is told the engine's version, again and again."""
        self._wish = wish
        self._docker = docker
        self._note_version = note_version
        self._facts = SwarmFacts()
        self._facts_until = 0.0
        self._stirred_at = -math.inf
        self._complaint = ""
        self._leads = False
        self._events: Events | None = None
        self._looker = Supervised("services", self._look_turn, settle=_SETTLE)
        self._listener = Supervised("service-events", self._listen_turn)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._looker, self._listener)

    def start(self) -> None:
        """Begin to ask the engine, which need not be up yet."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End; what was published stays."""
        for thread in self.threads:
            thread.end()
        deadline = time.monotonic() + _STOP
        while time.monotonic() < deadline and any(thread.alive for thread in self.threads):
            if events := self._events:
                events.close()
            time.sleep(0.01)

    def _look_turn(self) -> float:
        try:
            pause = self._look()
        except EngineAway as away:
            self._complain(str(away))
            return _RETRY
        self._complaint = ""
        return pause

    def _listen_turn(self) -> float:
        if not self._leads:
            return math.inf
        try:
            with closing(self._docker.events("service", "node", "network")) as self._events:
                self._pass_on(self._events)
        except EngineAway as away:
            log.debug("no news of services: %s", away)
            return _RETRY
        return 0.0

    def _pass_on(self, events: Events) -> None:
        """Make the other thread look after each event, for as long as we lead."""
        while self._leads and not self._listener.stopping:
            with self._listener.waiting():
                events.await_event()
            self._stirred_at = time.monotonic()
            self._looker.wake()

    def _look(self) -> float:
        """Ask the engine once; return after how many seconds to ask again. Raises EngineAway."""
        if time.monotonic() >= self._facts_until:
            self._facts = self._docker.info()
            self._facts_until = time.monotonic() + _FACTS
            self._note_port(self._facts.port)
            self._note_version(self._facts.version)
        leadership = self._docker.leadership(self._facts)
        if leadership is Leadership.YES:
            self._leads = True
            self._listener.wake()
            return self._ask()
        if leadership is Leadership.NO:
            self._leads = False
            self._say({})
        return _RETRY if self._facts.manager else _FACTS

    def _ask(self) -> float:
        """Say what there is, as the leader; return when to ask again: sooner when something is changing."""
        since = time.monotonic()
        networks = vips.our_networks(self._docker.list("networks", scope=["swarm"]))
        services = self._docker.list("services") if networks else []
        tasks = self._docker.list("tasks", desired_state=vips.WANTED) if services else []
        offer = vips.offer(networks, services, tasks)
        self._say(offer)
        if not any(offer.values()):
            return _LONGEST  # an event announces the first service
        if vips.is_settled(services, tasks) and since - self._stirred_at > _STIR:
            return min(_LONGEST, max(_AT_REST, (time.monotonic() - since) / _SHARE_AT_REST))
        return max(_SHORTEST, (time.monotonic() - since) / _SHARE)

    def _say(self, offer: Offer) -> None:
        if offer != self._wish.state.offer:
            self._wish.change(lambda state: replace(state, offer=offer))

    def _note_port(self, port: int | None) -> None:
        """Keep the Swarm's port: the last one counts for as long as the engine does not say."""
        if port and port != self._wish.state.host.swarm_port:
            self._wish.change(lambda s: replace(s, host=replace(s.host, swarm_port=port)), lasting=False)

    def _complain(self, reason: str) -> None:
        if reason != self._complaint and self._wish.state.offer:
            log.warning(
                "the engine cannot be asked for services and tasks: %s. Virtual addresses keep their "
                "last known tasks; if this lasts, use --endpoint-mode dnsrr",
                reason,
            )
        self._complaint = reason
