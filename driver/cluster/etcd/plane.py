"""The control plane over etcd 3.5: one thread that reads, one that writes, and what both share.

The reader passes on what the others have; the writer publishes what this host has. They meet in the
Exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from driver.cluster.etcd.exchange import Exchange
from driver.cluster.etcd.reader import EtcdReader
from driver.cluster.etcd.tls import PlainSessions, Sessions
from driver.cluster.etcd.writer import EtcdWriter
from driver.wish.records import Publication, View
from driver.wish.values import EndpointId, NetworkId, NodeId
from lib.supervised import Supervised

_STOP_SECONDS: Final = 3.0
_FLUSH_SECONDS: Final = 1.0
"""Seconds of these for what is still to be said when we stop without leaving: a container that has just ended
must not be vouched for while we are away."""


class EtcdControlPlane:
    """A ControlPlane (see there) on the members that *endpoints* names at the moment.

    They are tried in the order given, except that one that has just failed comes last. *lease_ttl* is how
    many seconds a host may be silent before the others see it as gone; *orphan_grace* is how
    long its records stay in the store after that.
    """

    def __init__(
        self,
        node: NodeId,
        endpoints: Callable[[], Sequence[str]],
        sessions: Sessions | None = None,
        *,
        lease_ttl: int = 15,
        orphan_grace: float = 600.0,
    ) -> None:
        sessions = sessions or PlainSessions()
        self._exchange = Exchange(node)
        self._reader = EtcdReader(self._exchange, endpoints, sessions)
        self._writer = EtcdWriter(self._exchange, sessions, lease_ttl, orphan_grace)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._reader.thread, self._writer.thread)

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; see ControlPlane."""
        self._reader.start(on_view)
        self._writer.thread.start()

    def publish(self, publication: Publication) -> None:
        """Replace what this host says; see ControlPlane."""
        self._exchange.publish(publication)

    def wait_published(self, timeout: float) -> bool:
        """Wait until the store has it; see ControlPlane."""
        with self._exchange.changed:
            return self._wait(self._exchange.settled, timeout)

    def wait_announced(self, network: NetworkId, endpoint: EndpointId, timeout: float) -> bool:
        """Wait until others can know of *endpoint*; see ControlPlane."""
        exchange = self._exchange
        with exchange.changed:
            keys = exchange.ledger.keys_of(endpoint)
            return self._wait(lambda: exchange.announced(network, keys), timeout)

    def _wait(self, fact: Callable[[], bool], timeout: float) -> bool:
        """Wait for *fact* while there is a store. The exchange's lock must be held."""
        exchange = self._exchange
        exchange.changed.wait_for(lambda: exchange.link is None or fact(), timeout)
        return exchange.link is not None and fact()

    def stop(self, *, leave: bool) -> None:
        """End within a few seconds; see ControlPlane.

        A host that leaves revokes its lease; otherwise the node record outlives it.
        """
        exchange, deadline = self._exchange, time.monotonic() + _STOP_SECONDS
        if leave and self._reader.thread.alive:
            self.publish(Publication())
            if self.wait_published(_STOP_SECONDS):
                self._writer.revoke()
        elif self._reader.thread.alive:
            with exchange.changed:
                self._wait(lambda: exchange.ledger.published(exchange.lease), _FLUSH_SECONDS)
        link = exchange.link
        for thread in self.threads:
            thread.end()
        exchange.stop()
        for thread in reversed(self.threads):
            thread.join(max(0.1, deadline - time.monotonic()))
        if link is not None and not leave:
            self._writer.pause(link)
