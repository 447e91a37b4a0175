"""Agrees with the other hosts on an MTU that carries to all of them.

A container may start on any host of a Swarm at any moment, and its packets must fit every card on the way. So
each host tells its underlay's MTU in its node record, and all take the smallest. More than 1500 bytes is
only believed after a packet of that size was answered by every host: cards say nothing of the switches and
tunnels between them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from driver.cluster.probe import answering
from driver.wish.model import Peers
from driver.wish.state import State
from driver.wish.values import Address
from driver.wish.wish import Wish
from lib.supervised import Supervised

log = logging.getLogger(__name__)

USUAL_MTU = 1500
"""Bytes that any path is taken to carry if no card on it says otherwise (RFC 894)."""
_AGAIN = 60.0
"""Seconds until hosts that did not answer are asked again."""
_SOON = 5.0
"""Seconds until containers are looked at again that may have been starting while the MTU sank."""
_TRUST = 60.0
"""Seconds after our start in which silence proves nothing against what was agreed before: hosts may start as
we do."""
_SETTLE = 0.05
"""Seconds to wait for more of a burst of changes."""


def smallest(own: int, peers: Peers) -> int:
    """Return the least MTU that any host has told."""
    return min([own, *(node.mtu for node in peers.nodes.values() if node.mtu)])


def to_ask(peers: Peers, answered: Mapping[Address, int], size: int) -> set[Address]:
    """Return the VTEPs that have not *answered* a packet of *size* bytes yet.

    Also of hosts that are away from the store: where large packets are lost, so may be the way to the store.
    """
    return {node.vtep for node in peers.nodes.values() if answered.get(node.vtep, 0) < size}


class PathMtu:
    """A thread that keeps ``Host.path_mtu`` what all hosts can carry; asking takes it up to two seconds."""

    def __init__(
        self,
        wish: Wish,
        *,
        probe: Callable[[Collection[Address], int], Collection[Address]] = answering,
        lower: Callable[[State], None] = lambda _state: None,
        again: float = _AGAIN,
        trust: float = _TRUST,
    ) -> None:
        """*probe* returns those of the VTEPs that answer a packet of that size.

        *lower* has running containers follow an MTU that has sunk. *again* and *trust* are in seconds.
        """
        self._wish = wish
        self._probe = probe
        self._lower = lower
        self._again = again
        self._trusted_until = time.monotonic() + trust
        self._seen: tuple[object, ...] = ()
        self._answered: dict[Address, int] = {}
        """How large a packet each host has answered."""
        self._silent: set[Address] = set()
        """Those that did not."""
        self._told: set[Address] = set()
        """Those of them that the log has named."""
        self._thread = Supervised("path-mtu", self._turn, settle=_SETTLE)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread,)

    def start(self) -> None:
        """Begin. On a new host nothing more than usual is believed before others were asked."""
        if not self._wish.state.endpoints:
            self._wish.change(_cautious, lasting=False)
        self._wish.subscribe(self._hear)
        self._thread.start()

    def stop(self) -> None:
        """End; what was agreed last stays."""
        self._thread.stop()

    def _hear(self) -> None:
        if _question(self._wish.state) != self._seen:
            self._thread.wake()

    def _turn(self) -> float:
        state = self._wish.state
        self._seen = _question(state)
        if state.mtu is None:
            return math.inf
        has_sunk = self._settle(self._agree(state.mtu, state))
        self._lower(self._wish.state)
        if has_sunk or (self._silent and self._trusts):
            return min(_SOON, self._again)
        return self._again if self._silent else math.inf

    @property
    def _trusts(self) -> bool:
        return time.monotonic() < self._trusted_until

    def _agree(self, own: int, state: State) -> int:
        """Return what carries to every host, asking those that have not answered yet."""
        size = smallest(own, state.peers)
        silent = to_ask(state.peers, self._answered, size) if size > USUAL_MTU else set()
        if silent:
            self._answered |= dict.fromkeys(self._probe(silent, size), size)
            silent = to_ask(state.peers, self._answered, size)
        before = min(size, state.host.path_mtu or USUAL_MTU)
        self._silent = silent
        if size > USUAL_MTU and not state.peers.nodes:  # nobody to ask: what was found last stands
            return before
        if silent and before > USUAL_MTU and self._trusts:
            return before
        self._tell(silent - self._told, size)
        self._told = silent
        return USUAL_MTU if silent else size

    def _tell(self, silent: Collection[Address], size: int) -> None:
        for vtep in sorted(silent, key=str):
            log.warning(
                "host %s did not answer a packet of %d bytes: containers get the MTU for an underlay of %d. "
                "If the path carries more, say so by hand: -o mtu= of the network",
                *(vtep, size, USUAL_MTU),
            )

    def _settle(self, agreed: int) -> bool:
        """Have the wish say what was agreed; return whether that is less than before."""
        before = self._wish.state.host.path_mtu
        if agreed != before:
            log.info("the underlay carries %d bytes to all hosts (before: %s)", agreed, before or "not known")
            self._wish.change(lambda state: _with_mtu(state, agreed), lasting=False)
        return agreed < (before or math.inf)


def _question(state: State) -> tuple[object, ...]:
    """Return all that the answer depends on."""
    return state.mtu, dict(state.peers.nodes)


def _cautious(state: State) -> State:
    return state if state.host.path_mtu else _with_mtu(state, USUAL_MTU)


def _with_mtu(state: State, agreed: int) -> State:
    return replace(state, host=replace(state.host, path_mtu=agreed))
