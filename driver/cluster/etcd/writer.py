"""The writing half of the etcd back end: claims, node record, lease, and a little tidying."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from driver.cluster.etcd.client import EtcdClient, EtcdError, LeaseLost, Refused
from driver.cluster.etcd.exchange import Exchange, Link
from driver.cluster.etcd.sweep import Sweep
from driver.cluster.etcd.tls import Sessions
from driver.cluster.ledger.claims import Claim
from driver.cluster.ledger.codec import encode_endpoint, endpoint_key, node_key
from driver.cluster.ledger.orphans import OrphanWatch
from driver.cluster.ledger.table import Entry
from driver.wish.errors import StoreUnavailable
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_BATCH: Final = 120
"""etcd allows 128 operations in a transaction, conditions of nested ones included."""
_BYTES: Final = 1 << 19
"""Of values in a transaction. etcd takes 1.5 MiB in a request (--max-request-bytes); a service of 3,000 tasks
has 50 KB."""
_BEATS: Final = 5
"""Heartbeats per lease: at 15 s one every 3 s, so that with the time-out of a request (2 s) a
member that hangs, though its kernel still answers for it, is given up within 5 s."""
_TIDY_SECONDS: Final = 60.0
_REFUSED_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 3600


class EtcdWriter:
    """Works until the store holds our publication, in a thread of its own."""

    def __init__(self, exchange: Exchange, sessions: Sessions, lease_ttl: int, orphan_grace: float) -> None:
        self._exchange = exchange
        self._sessions = sessions
        self._ttl = lease_ttl
        # Not all hosts at once: the first one does it for all.
        self._orphans = OrphanWatch(orphan_grace * random.uniform(1.0, 1.2))  # noqa: S311 - no secret
        self._sweep = Sweep(exchange, self._orphans)
        self._tidy_every = min(_TIDY_SECONDS, orphan_grace / 2)
        self._tidy_at = 0.0
        self._beat_at = 0.0
        self._pause_until = 0.0
        self._refusal = ""
        self._link: Link | None = None
        self._client: EtcdClient | None = None
        self.thread = Supervised("store-writer", self._turn, at_end=self._disconnect)

    def pause(self, link: Link) -> None:
        """Make our node record outlive this process by an hour; called once our thread has ended.

        Containers go on while the plugin is upgraded, and their host must not be taken for dead
        meanwhile. Who claims one of our addresses gets it all the same.

        The price is that a host which dies meanwhile counts as live for what is left of the hour. Rows to it
        cost little: Swarm starts its tasks elsewhere, with other addresses. To judge a paused host by whether
        it answers would cut running containers off wherever ICMP is filtered.
        """
        with self._exchange.changed:
            lease, record = self._exchange.lease, self._exchange.ledger.node_record()
        if record is None:
            return
        try:
            client = EtcdClient(link.url, self._sessions.session())
            client.change([record], client.grant(_PAUSE_SECONDS))
            if lease:
                client.revoke(lease)
            client.close()
        except (EtcdError, StoreUnavailable) as error:
            log.info("cannot extend the node record, which expires with its lease: %s", error)

    def revoke(self) -> None:
        """Revoke the lease, from another thread; when that fails, it expires by itself."""
        with self._exchange.changed:
            link, lease = self._exchange.link, self._exchange.lease
            self._exchange.lease = 0
        if link is None or not lease:
            return
        try:
            client = EtcdClient(link.url, self._sessions.session())
            client.revoke(lease)
            client.close()
        except (EtcdError, StoreUnavailable) as error:
            log.info("cannot revoke the lease, which expires by itself: %s", error)

    def _turn(self) -> float:
        """Wait for something to do, and do it."""
        link = self._await_work()
        if link is None:
            return 0.0
        try:
            self._work(link, self._connected(link))
        except LeaseLost as error:
            log.warning("%s: taking a new one", error)
            self._set_lease(0)
        except Refused as error:
            self._refused(str(error))
        except (EtcdError, StoreUnavailable) as error:
            self._exchange.fail(link, str(error))
        except Exception:
            self._exchange.fail(link, "writing to it failed: the error is in this log")
            raise
        return 0.0

    def _await_work(self) -> Link | None:
        """Wait for something to do, and return where; None when it is time to end."""
        exchange = self._exchange
        with exchange.changed:
            while not exchange.stopping:
                link = exchange.link if exchange.link and not exchange.link.broken else None
                if link is not self._link:
                    self._disconnect()
                    self._link = link
                    self._beat_at = 0.0
                    self._orphans.restart()
                now = time.monotonic()
                if link is not None and self._due(now):
                    return link
                with self.thread.waiting():
                    exchange.changed.wait(self._patience(now) if link is not None else None)
            return None

    def _due(self, now: float) -> bool:
        if now < self._pause_until:
            return False
        return now >= self._beat_at or bool(self._claims()) or self._node_claim() is not None

    def _patience(self, now: float) -> float:
        return max(0.0, (self._pause_until if now < self._pause_until else self._beat_at) - now)

    def _claims(self) -> list[Claim]:
        return _fitting(self._exchange.ledger.pending(_BATCH))

    def _node_claim(self) -> Claim | None:
        """Return what to do about the node record; without a lease it waits for one."""
        return self._exchange.ledger.pending_node(self._exchange.lease) if self._exchange.lease else None

    def _connected(self, link: Link) -> EtcdClient:
        if self._client is None:
            self._client = EtcdClient(link.url, self._sessions.session())
        return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _work(self, link: Link, client: EtcdClient) -> None:
        """Do the one thing that comes first: endpoints, then the node that stands for them."""
        with self._exchange.changed:
            claims, lease = self._claims(), self._exchange.lease
            node = None if claims else self._node_claim()
        if time.monotonic() >= self._beat_at:
            self._beat(link, client, lease)
            return
        if claims:
            done, revision = client.change(claims)
            self._answered(link, claims, done, revision)
        elif node is not None:
            _, revision = client.change([node], lease)
            self._answered_node(link, node, lease, revision)
        self._refusal = ""

    def _answered(self, link: Link, claims: Sequence[Claim], done: Sequence[bool], revision: int) -> None:
        with self._exchange.changed:
            if self._exchange.link is link:  # else the answer came from a store that may be gone
                for claim, held in zip(claims, done, strict=True):
                    self._exchange.ledger.answered(claim, held, revision)
                self._exchange.changed.notify_all()

    def _answered_node(self, link: Link, claim: Claim, lease: int, revision: int) -> None:
        with self._exchange.changed:
            if self._exchange.link is link:
                self._exchange.ledger.answered_node(claim, lease, revision)
                self._exchange.changed.notify_all()

    def _beat(self, link: Link, client: EtcdClient, lease: int) -> None:
        """Show that we are alive, check that the member is, and do the slow housekeeping."""
        if self._sessions.version() != link.version:
            raise EtcdError("the certificates were renewed")
        if lease:
            client.keep_alive(lease)
        else:
            self._set_lease(client.grant(self._ttl))
        self._beat_at = time.monotonic() + self._ttl / _BEATS
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + self._tidy_every
            self._tidy(client)

    def _set_lease(self, lease: int) -> None:
        with self._exchange.changed:
            self._exchange.lease = lease
            self._beat_at = self._beat_at if lease else 0.0
            self._exchange.changed.notify_all()

    def _refused(self, reason: str) -> None:
        """Try again later; the reading half is not affected."""
        if reason != self._refusal:
            log.error("the store refuses our records: %s", reason)
        self._refusal = reason
        self._pause_until = time.monotonic() + _REFUSED_SECONDS

    def _tidy(self, client: EtcdClient) -> None:
        with self._exchange.changed:
            view = self._exchange.ledger.view(connected=True)
        now = time.monotonic()
        for node, records in self._orphans.due(view, now).items():
            entries = [Entry(endpoint_key(r.network, r.address), encode_endpoint(r), 0) for r in records]
            for first in range(0, len(entries), _BATCH):
                removed = client.remove_orphans(entries[first : first + _BATCH], node_key(node))
                log.info("removed %d records of node %s, which has been away for long", removed, node)
        for _ in range(self._sweep.steps(len(view.nodes))):
            self._sweep.step(client, now)


def _fitting(claims: list[Claim]) -> list[Claim]:
    """Return the first of *claims*, as many as etcd takes in one request; at least one."""
    sizes = accumulate(len(claim.value) for claim in claims)
    return claims[: max(1, sum(size <= _BYTES for size in sizes))]
