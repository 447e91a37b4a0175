"""The control plane over etcd 3.5: one thread that reads, one that writes, and what both share.

The reader tells the user what the others have; the writer brings out what this host has. They meet in the
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
from driver.wish.values import NodeId
from lib.supervised import Supervised

_STOP_SECONDS: Final = 3.0
_LAST_WORDS: Final = 0.5
"""Seconds to bring out what was said last: the others would believe what went before for an hour."""


class EtcdControlPlane:
    """A ControlPlane (see there) on the members that *endpoints* names at the time of asking.

    They are tried in the order given, but one that has just failed last. *lease_ttl* is how
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
        """All threads, for those who want to know how they fare."""
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
        exchange = self._exchange
        with exchange.changed:
            exchange.changed.wait_for(lambda: exchange.link is None or exchange.settled(), timeout)
            return exchange.link is not None and exchange.settled()

    def stop(self, *, leave: bool) -> None:
        """End within a few seconds; see ControlPlane.

        Who leaves revokes the lease; who does not has the node record outlive it.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        if leave and self._reader.thread.alive:
            self.publish(Publication())
            if self.wait_published(_STOP_SECONDS):
                self._writer.revoke()
        else:
            self.wait_published(_LAST_WORDS)
        link = self._exchange.link
        for thread in self.threads:
            thread.end()
        self._exchange.stop()
        for thread in reversed(self.threads):
            thread.join(max(0.1, deadline - time.monotonic()))
        if link is not None and not leave:
            self._writer.pause(link)
