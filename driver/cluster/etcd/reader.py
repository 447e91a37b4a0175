"""The reading half of the etcd back end: a snapshot, then a watch, for as long as a member serves us.

However the connection ends, the answer is the same: another member, and what has changed since the last word.
A hundred hosts that have lost their store for a moment would otherwise all ask it for everything. What
is gone meanwhile shows in the number of keys, so a compacted past and a lost event need no special treatment.
Of another store everything is read.
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
        self._since: dict[Scope, int] = {}
        """The revision of this cluster up to which each scope was read, over whatever link."""
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
            self._since = {}
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
            if link.served:
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
                kept = self._since.keys() & (set(scopes) - ledger.unread())
                self._since = {scope: self._since[scope] for scope in kept}
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
        self._read(client, link, scopes)
        link.served = True
        if self._exchange.link is not link:
            self._connected(link)
        self._tell()
        if not self._has_more_to_follow(link):
            self._take_changes(watch)

    def _connected(self, link: Link) -> None:
        log.info("store connected: %s, cluster %s, revision %d", link.url, self._cluster, self._revision)
        self._complaints.clear()
        with self._exchange.changed:
            self._exchange.link = link
            self._exchange.changed.notify_all()

    def _read(self, client: EtcdClient, link: Link, scopes: Sequence[Scope]) -> None:
        """Read *scopes*; from the beginning if the store is another one than before this link."""
        parts = [scopes[first : first + _MAX_PREFIXES] for first in range(0, len(scopes), _MAX_PREFIXES)]
        for _ in range(2):
            if all(self._catch_up(client, part) for part in parts):
                return
            if link.served:  # what the writer was told over it may be the former store's
                break
        raise EtcdError(f"{client.url}: the store was replaced")

    def _catch_up(self, client: EtcdClient, scopes: Sequence[Scope]) -> bool:
        """Read *scopes*: in full, or only the changes where they were read before.

        Return False when what was read before was another store's.
        """
        snapshot = client.read_prefixes({scope: self._since.get(scope, 0) for scope in scopes})
        if self._is_another_store(snapshot):
            return False
        torn = [scope for scope in scopes if not self._take_snapshot(snapshot, scope)]
        if torn:  # keys are gone, and only a full read tells which
            snapshot = client.read_prefixes(dict.fromkeys(torn, 0))
            if self._is_another_store(snapshot):
                return False
            for scope in torn:
                del self._since[scope]
                self._take_snapshot(snapshot, scope)
        return True

    def _take_snapshot(self, snapshot: Snapshot, scope: Scope) -> bool:
        """Take in what *snapshot* says about *scope*; return False when that was not enough."""
        extent = snapshot.extents[scope]
        with self._exchange.changed:
            ledger = self._exchange.ledger
            if scope != NODES and scope not in ledger.followed():
                return True
            if scope not in self._since:
                ledger.load_scope(scope, extent.entries, snapshot.revision)
            else:
                ledger.seen(extent.entries)
                if ledger.table.count(scope) != extent.count:
                    return False
            self._since[scope] = snapshot.revision
            return True

    def _is_another_store(self, snapshot: Snapshot) -> bool:
        """Notice that the store was replaced (its id differs, or its revision went back), and begin anew.

        Return whether something was read of the former one, so that *snapshot* may lack what is older.
        """
        known, former = self._since, self._revision
        self._revision = snapshot.revision
        if snapshot.cluster == self._cluster and snapshot.revision >= former:
            return False
        self._cluster, self._since = snapshot.cluster, {}
        with self._exchange.changed:
            self._exchange.ledger.restart()
            self._exchange.lease = 0
        return bool(known)

    def _has_more_to_follow(self, link: Link) -> bool:
        """Tell whether the watch must be reopened; raise EtcdError when the link is given up."""
        with self._exchange.changed:
            if link.broken:
                raise EtcdError(link.broken)
            return bool(self._exchange.ledger.unread())

    def _take_changes(self, watch: Watch) -> None:
        batch: list[Entry] = []
        changes = iter(watch)
        while True:
            with self.thread.waiting():
                batch += next(changes)
            if batch and (len(batch) >= _MAX_BATCH or not watch.more()):
                self._take(batch)
                batch = []
                self._tell()

    def _take(self, batch: Sequence[Entry]) -> None:
        with self._exchange.changed:
            news = [entry for entry in batch if entry.revision > self._since.get(scope_of(entry.key), 0)]
            self._exchange.ledger.seen(news)
            for entry in news:
                scope = scope_of(entry.key)
                if scope in self._since:
                    self._since[scope] = max(self._since[scope], entry.revision)
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
