"""The reading half of the etcd back end: a snapshot, then a watch, for as long as a member serves us.

However the connection ends, the answer is the same: another member, and a new snapshot.
A snapshot is complete, so a compacted past, a lost event and a new store need no special
treatment.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from driver.cluster.etcd.client import EtcdClient, EtcdError, Snapshot, Watch
from driver.cluster.etcd.exchange import Exchange, Link
from driver.cluster.etcd.tls import Sessions
from driver.cluster.ledger.codec import NODES, Scope, scope_of
from driver.cluster.ledger.table import Entry
from driver.wish.errors import StoreUnavailable
from driver.wish.records import View
from driver.wish.values import NetworkId
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_MAX_PREFIXES: Final = 100
_MAX_BATCH: Final = 4096
_STEADY: Final = 1.0
"""Seconds that a connection must last for the next one to be tried at once."""
_MEANWHILE: Final = (
    "Running containers keep their connections; new ones are announced once the store is back. If this "
    "lasts, check that the store's port (TCP 2389, or PYOVERLAY_STORE_PORT) is open between all nodes, that "
    "the plugin is enabled on every manager, and that every host's clock is right, as certificates expire"
)


class EtcdReader:
    """Maintains the exchange's link and ledger, and passes on every new view."""

    def __init__(
        self, exchange: Exchange, endpoints: Callable[[], Sequence[str]], sessions: Sessions
    ) -> None:
        self._exchange = exchange
        self._endpoints = endpoints
        self._sessions = sessions
        self._cluster = ""
        self._revision = 0
        """The highest one seen of this cluster."""
        self._failed = ""
        self._complaints: set[str] = set()
        self._delay = 0.0
        self.thread = Supervised("store-reader", self._turn)

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; *on_view* is called in the thread."""
        self._on_view = on_view
        self.thread.start()

    def _turn(self) -> float:
        """Stay connected for as long as that works; return how long to wait before the next attempt."""
        since = time.monotonic()
        try:
            connected = self._try_members()
        except Exception:  # a view that is no longer read is frozen
            self._freeze()
            raise
        steady = connected and time.monotonic() - since > _STEADY
        self._delay = 0.0 if steady else min(1.0, max(0.1, 2 * self._delay))
        return self._delay * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _try_members(self) -> bool:
        """Try every member once, until one has served us; return whether one has."""
        urls = self._endpoints()
        if not urls:
            self._complain("no manager of the Swarm is known yet")
        for url in sorted(urls, key=lambda url: url == self._failed):
            if self._exchange.stopping:
                break
            link = Link(url, self._sessions.version())
            try:
                client = EtcdClient(url, self._sessions.session())
            except StoreUnavailable as error:
                self._complain(str(error))
                return False
            try:
                self._serve(client, link)
            except EtcdError as error:
                self._lost(link, str(error))
            finally:
                client.close()
            if link.since:
                return True
        return False

    def _complain(self, reason: str) -> None:
        """Log why there is no store: once, not at every attempt."""
        if reason not in self._complaints and not self._exchange.stopping:
            self._complaints.add(reason)
            log.warning("store away: %s. %s", reason, _MEANWHILE)

    def _lost(self, link: Link, reason: str) -> None:
        """Remember and say why; the view freezes, if it was alive."""
        self._failed = link.url
        self._complain(link.broken or reason)
        self._freeze()

    def _freeze(self) -> None:
        with self._exchange.changed:
            self._exchange.link = None
            self._exchange.changed.notify_all()
        self._tell()

    def _serve(self, client: EtcdClient, link: Link) -> None:
        """Read and watch on one member until it fails, which always ends in an EtcdError."""
        while not self._exchange.stopping:
            with self._exchange.changed:
                ledger = self._exchange.ledger
                scopes = [NODES, *ledger.followed()]
                kept = link.since.keys() & (set(scopes) - ledger.unread())
                link.since = {scope: link.since[scope] for scope in kept}
            watch = client.watch(scopes)
            try:
                self._follow(client, link, watch, scopes)
            except EtcdError:
                # An interruption of our own is no trouble of the store's, even when what was to be followed
                # is not any more, or nothing had been read yet.
                if link.broken or not watch.interrupted:
                    raise
            finally:
                with self._exchange.changed:
                    link.watch = None
                watch.close()

    def _follow(self, client: EtcdClient, link: Link, watch: Watch, scopes: Sequence[Scope]) -> None:
        """Read *scopes* and take in their changes until the connection ends or is interrupted.

        The watch exists before the first record is read, so that no change is missed between the two.
        """
        with self._exchange.changed:
            link.watch = watch
        watch.wait_open()
        for first in range(0, len(scopes), _MAX_PREFIXES):
            self._catch_up(client, link, scopes[first : first + _MAX_PREFIXES])
        if self._exchange.link is not link:
            self._connected(link)
        self._tell()
        if not self._has_more_to_follow(link):
            self._take_changes(watch, link)

    def _connected(self, link: Link) -> None:
        log.info("store connected: %s, cluster %s, revision %d", link.url, self._cluster, self._revision)
        self._complaints.clear()
        with self._exchange.changed:
            self._exchange.link = link
            self._exchange.changed.notify_all()

    def _catch_up(self, client: EtcdClient, link: Link, scopes: Sequence[Scope]) -> None:
        """Read *scopes*: in full, or only the changes where they were read over this link before."""
        snapshot = client.read_prefixes({scope: link.since.get(scope, 0) for scope in scopes})
        torn = [scope for scope in scopes if not self._take_snapshot(link, snapshot, scope)]
        if torn:  # keys are gone, and only a full read tells which
            snapshot = client.read_prefixes(dict.fromkeys(torn, 0))
            for scope in torn:
                del link.since[scope]
                self._take_snapshot(link, snapshot, scope)

    def _take_snapshot(self, link: Link, snapshot: Snapshot, scope: Scope) -> bool:
        """Take in what *snapshot* says about *scope*; return False when that was not enough."""
        extent = snapshot.extents[scope]
        with self._exchange.changed:
            ledger = self._exchange.ledger
            self._check_store(link, snapshot)
            if scope != NODES and scope not in ledger.followed():
                return True
            if scope not in link.since:
                ledger.load_scope(scope, extent.entries, snapshot.revision)
            else:
                ledger.seen(extent.entries)
                if ledger.table.count(scope) != extent.count:
                    return False
            link.since[scope] = snapshot.revision
            return True

    def _check_store(self, link: Link, snapshot: Snapshot) -> None:
        """Notice that the store was replaced: its id differs, or its revision went back."""
        if snapshot.cluster != self._cluster or snapshot.revision < self._revision:
            if link.since:
                raise EtcdError(f"{link.url}: the store was replaced")
            self._cluster = snapshot.cluster
            self._exchange.ledger.restart()
            self._exchange.lease = 0
        self._revision = snapshot.revision

    def _has_more_to_follow(self, link: Link) -> bool:
        """Tell whether the watch must be reopened; raise EtcdError when the link is given up."""
        with self._exchange.changed:
            if link.broken:
                raise EtcdError(link.broken)
            return bool(link.since and self._exchange.ledger.unread())

    def _take_changes(self, watch: Watch, link: Link) -> None:
        batch: list[Entry] = []
        changes = iter(watch)
        while True:
            with self.thread.waiting():
                batch += next(changes)
            if batch and (len(batch) >= _MAX_BATCH or not watch.more()):
                self._take(batch, link)
                batch = []
                self._tell()

    def _take(self, batch: Sequence[Entry], link: Link) -> None:
        with self._exchange.changed:
            news = [entry for entry in batch if entry.revision > link.since.get(scope_of(entry.key), 0)]
            self._exchange.ledger.seen(news)
            for entry in news:
                scope = scope_of(entry.key)
                if scope in link.since:
                    link.since[scope] = max(link.since[scope], entry.revision)
                self._revision = max(entry.revision, self._revision)
            self._exchange.changed.notify_all()

    def _tell(self) -> None:
        """Pass on the view, if it has changed."""
        exchange = self._exchange
        with exchange.changed:
            view = exchange.ledger.view(exchange.link is not None)
            if exchange.stopping or _same(view, exchange.told):
                return
        try:
            self._on_view(view)
        except Exception as error:  # a failing user of the views must not stop them
            self.thread.failed(error)
        with exchange.changed:
            exchange.told = view
            exchange.changed.notify_all()


def _same(one: View, other: View) -> bool:
    """Compare by identity: maps that have not changed are the same objects."""
    return (
        one.connected == other.connected
        and one.nodes is other.nodes
        and _same_maps(one.endpoints, other.endpoints)
        and _same_maps(one.services, other.services)
    )


def _same_maps(one: Mapping[NetworkId, object], other: Mapping[NetworkId, object]) -> bool:
    return one.keys() == other.keys() and all(one[network] is other[network] for network in one)
