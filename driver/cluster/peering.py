"""Between wish and control plane: what we have goes out, what the others have comes in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from driver.cluster.backend import ControlPlane
from driver.cluster.probe import answering
from driver.cluster.publication import publication
from driver.wish.peers import heard, merge, overdue, settle, too_many_stale, with_new_grace
from driver.wish.records import Publication, View
from driver.wish.state import State
from driver.wish.values import Address, EndpointId, NetworkId
from driver.wish.wish import Wish
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_TICK = 5.0
"""Seconds between looks for nodes whose grace has run out."""
_LAST_TICK = 0.5
"""Seconds to wait for the last look to end."""
_TRIES = 3
"""How often a view is merged while calls continue, before they have to wait for it."""


class Peering:
    """Publishes every change of the state and merges every view into it."""

    def __init__(
        self,
        wish: Wish,
        control: ControlPlane,
        *,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[[Collection[Address]], Collection[Address]] = answering,
        is_incomplete: Callable[[], bool] = lambda: False,
    ) -> None:
        """*probe* returns those of the VTEPs whose hosts answer.

        While *is_incomplete* says that we have more than we know, we say nothing, since what we do not
        mention would be withdrawn. Call `publish` when that is over.
        """
        self._wish = wish
        self._control = control
        self._clock = clock
        self._probe = probe
        self._is_incomplete = is_incomplete
        self._answering: frozenset[Address] = frozenset()
        """Hosts that were away from the store but answered the last probe."""
        self._frozen = False
        """Whether more than half of the nodes were missing at the last look."""
        self._connected = False
        """Whether the last view was: while we are cut off, nobody is judged by what was known before."""
        self._seen: State | None = None
        self._published: Publication | None = None
        self._lock = threading.Lock()
        self._ticker = Supervised("silent-hosts", self._tick)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """Its own, and those of the control plane."""
        return (self._ticker, *self._control.threads)

    def start(self) -> None:
        """Begin to publish and to listen."""
        self._wish.subscribe(self.publish)
        self._control.start(self._on_view)
        self.publish()
        self._ticker.start(_TICK)

    def stop(self, *, leave: bool) -> None:
        """End; with *leave* nothing of ours stays in the control plane.

        The control plane is first: to ask silent hosts takes seconds, and is left alone.
        """
        self._ticker.end()
        self._control.stop(leave=leave)
        self._ticker.join(_LAST_TICK)

    def wait_published(self, timeout: float) -> bool:
        """Wait until others can know all that this host has, and this host what they have."""
        return self._control.wait_published(timeout)

    def wait_announced(self, network: NetworkId, endpoint: EndpointId, timeout: float) -> bool:
        """Wait until others can know of *endpoint*, and this host what they have in *network*."""
        return self._control.wait_announced(network, endpoint, timeout)

    def publish(self) -> None:
        """Say what has changed since the last time; returns at once."""
        if self._is_incomplete():
            return
        with self._lock:
            state = self._wish.state
            if state is self._seen:  # changes saved together are all announced with the same state
                return
            self._seen, said = state, publication(state)
            if said != self._published:
                self._published = said
                self._control.publish(said)

    def _on_view(self, view: View) -> None:
        now = self._clock()
        back = view.connected and not self._connected
        self._connected = self._connected and view.connected
        if not any(self._merged_outside(view, now, back) for _ in range(_TRIES)):
            self._wish.change(lambda state: _merged(state, view, now, back))
        self._connected = view.connected
        frozen = view.connected and too_many_stale(self._wish.state.peers)
        if frozen and not self._frozen:
            log.error("more than half of the known nodes are missing from the store: keeping all their rows")
        self._frozen = frozen

    def _merged_outside(self, view: View, now: float, back: bool) -> bool:
        """Merge *view* while calls go on; return False when one of them changed what was merged.

        This looks at all rows and takes 30 ms for 50,000 of them: too long to make every call wait.
        """
        seen = self._wish.state
        merged = _merged(seen, view, now, back)

        def step(state: State) -> tuple[State, bool]:
            same = state.peers is seen.peers and state.services is seen.services
            if not same or state.networks.keys() != seen.networks.keys():
                return state, False
            if merged is seen:
                return state, True
            return replace(state, peers=merged.peers, services=merged.services), True

        return self._wish.decide(step)

    def _tick(self) -> float:
        now = self._clock()
        late = overdue(self._wish.state.peers, now) if self._connected else ()
        if late:
            self._settle(late, now)
        return _TICK

    def _settle(self, late: Collection[Address], now: float) -> None:
        """Drop hosts that do not answer; those that became overdue during the probe are probed next time."""
        found = frozenset(self._probe(late))
        for vtep in sorted(found - self._answering, key=str):
            log.warning("host %s is away from the store but answers: keeping its containers' rows", vtep)
        self._answering = found
        if self._connected:  # still, after seconds of asking
            self._wish.change(lambda state: replace(state, peers=settle(state.peers, found, now)))


def _merged(state: State, view: View, now: float, back: bool) -> State:
    """Merge *view*; *back* tells whether it is the first one after we have been cut off."""
    known = with_new_grace(state.peers, now) if back else state.peers
    peers = merge(known, view, state.host.id, state.networks, now, own_vtep=state.host.vtep)
    services = heard(state.services, view, state.networks)
    if peers == state.peers and services == state.services:
        return state
    return replace(state, peers=peers, services=services)
