"""One node's dealings with a store: what it publishes, what it was told, what is left to do. Pure.

The back ends differ in how they reach a store; what they say to it and conclude from its
answers is here, once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from driver.cluster.ledger.claims import Claim, Claims, Put, Withdraw
from driver.cluster.ledger.codec import (
    NODES,
    Scope,
    encode_endpoint,
    encode_leader,
    encode_node,
    encode_service,
    endpoint_key,
    endpoints_of,
    is_leader_key,
    is_services,
    leader_key,
    node_key,
    scope_of,
    service_key,
    services_of,
)
from driver.cluster.ledger.table import Entry, Table
from driver.wish.records import EndpointRecord, Offer, Publication, View
from driver.wish.values import EndpointId, NodeId

log = logging.getLogger(__name__)


class Ledger:
    """Our publication and the store side by side; the caller holds a lock around every call."""

    def __init__(self, node: NodeId) -> None:
        self.table = Table()
        self._node = node
        self._claims = Claims(node)
        self._services = Claims(node)
        self._leads = Claims(node)
        """The keys that make our services count."""
        self._publication = Publication()
        self._offer: Offer | None = None
        self._lines: dict[EndpointRecord, tuple[str, str]] = {}
        self._scopes: frozenset[Scope] = frozenset()
        """The publication's networks: those to follow, and those of its records."""
        self._node_key = node_key(node)
        self._node_entry = Entry(self._node_key, None, 0)
        self._node_lease: int | None = None
        """The lease under which the store holds our node record, if we know of it."""

    def set_publication(self, publication: Publication) -> None:
        """Replace what this host says."""
        self._publication = publication
        networks = publication.networks | {e.network for e in publication.endpoints}
        offered = publication.networks | (publication.offer or {}).keys()
        self._scopes = frozenset([*map(endpoints_of, networks), *map(services_of, offered)])
        self._lines = {e: self._lines.get(e) or _line(e) for e in publication.endpoints}
        self._claims.set_wanted(dict(self._lines.values()))
        if publication.offer is not None and publication.offer is not self._offer:
            self._offer = publication.offer
            self._want_services(publication.offer)
        for scope in self.table.known - self.followed():
            self.table.forget(scope)

    def followed(self) -> frozenset[Scope]:
        """Return what to read and watch beside the nodes: published networks, and where we have records."""
        kinds = (self._claims, self._services, self._leads)
        return self._scopes | {scope_of(key) for claims in kinds for key in claims.leftovers()}

    def unread(self) -> frozenset[Scope]:
        """Return the scopes that must be followed but have not been read yet."""
        return self.followed() - self.table.known

    def view(self, connected: bool) -> View:
        """Return the view for the user of the back end."""
        return self.table.view(connected, self._publication.networks)

    def restart(self) -> None:
        """Begin with a new store; what was known of the old one is kept for comparison."""
        self._claims.restart()
        self._services.restart()
        self._leads.restart(insist=False)  # this may be the store of a leader elected after us
        self._node_entry = Entry(self._node_key, None, 0)
        self._node_lease = None

    def load_scope(self, scope: Scope, entries: Collection[Entry], revision: int) -> None:
        """Take in a whole scope as of *revision*."""
        self.table.load(scope, entries)
        if is_services(scope):
            self._services.load_scope(scope, [e for e in entries if not is_leader_key(e.key)], revision)
            self._leads.load_scope(scope, [e for e in entries if is_leader_key(e.key)], revision)
            return
        if scope != NODES:
            self._claims.load_scope(scope, entries, revision)
            return
        mine = next((e.value for e in entries if e.key == self._node_key), None)
        self._told_node(Entry(self._node_key, mine, revision))

    def seen(self, entries: Collection[Entry]) -> None:
        """Take in changes, in the order in which the store told them."""
        self.table.take_in(entries)
        for entry in entries:
            if entry.key == self._node_key:
                self._told_node(entry)
            elif not entry.key.startswith(NODES):
                self._kind_of(entry.key).seen([entry])

    def is_leftover(self, entry: Entry) -> bool:
        """Tell whether a record of a network that is not followed is ours and not wanted (any more)."""
        return self._kind_of(entry.key).is_leftover(entry)

    def pending(self, limit: int) -> list[Claim]:
        """Return the next records to write or to withdraw.

        The key that makes our services count is written after all of them, and removed before them.
        """
        leads = self._leads.pending(limit)
        return (
            self._claims.pending(limit)
            or [claim for claim in leads if isinstance(claim, Withdraw)]
            or self._services.pending(limit)
            or leads
        )

    def answered(self, claim: Claim, done: bool, revision: int) -> None:
        """Take in the answer to one of them."""
        self._kind_of(claim.key).answered(claim, done, revision)

    def pending_node(self, lease: int) -> Claim | None:
        """Return what to do about the node record, once all endpoint records are in."""
        wanted = self._node_value()
        if wanted is None:
            value = self._node_entry.value if self._node_lease is not None else None
            return None if value is None else Withdraw(self._node_key, value)
        if not self._claims.settled():
            return None
        if self._node_lease == lease and self._node_entry.value == wanted:
            return None
        return Put(self._node_key, wanted)

    def node_record(self) -> Put | None:
        """Return what puts the node record, if the store has it and there are endpoints it stands for."""
        node = self._publication.node
        if node is None or self._node_entry.value is None or not self._publication.endpoints:
            return None
        return Put(self._node_key, encode_node(node))

    def answered_node(self, claim: Claim, lease: int, revision: int) -> None:
        """Take in that the store did it, under *lease*."""
        value = claim.value if isinstance(claim, Put) else None
        if revision >= self._node_entry.revision:
            self._node_entry = Entry(self._node_key, value, revision)
            self._node_lease = None if value is None else lease

    def published(self, lease: int) -> bool:
        """Tell whether the store holds our publication."""
        return not self.pending(1) and self.pending_node(lease) is None

    def settled(self, lease: int) -> bool:
        """Tell whether the store holds our publication and every followed network was read."""
        return self.published(lease) and not self.unread()

    def keys_of(self, endpoint: EndpointId) -> set[str]:
        """Return the keys of the records that are published of *endpoint*."""
        return {key for record, (key, _) in self._lines.items() if record.endpoint == endpoint}

    def announced(self, keys: Collection[str]) -> bool:
        """Tell whether the store holds the records with *keys*, and the node record that makes them count."""
        return self._claims.settled(keys) and self._node_value() in (None, self._node_entry.value)

    def _want_services(self, offer: Offer) -> None:
        records = (record for some in offer.values() for record in some)
        self._services.set_wanted(
            {service_key(self._node, record): encode_service(record) for record in records}
        )
        self._leads.set_wanted({})  # a host with news leads, whichever host has claimed to since
        self._leads.set_wanted({leader_key(network): encode_leader(self._node) for network in offer})

    def _kind_of(self, key: str) -> Claims:
        if is_leader_key(key):
            return self._leads
        return self._services if is_services(Scope(key)) else self._claims

    def _node_value(self) -> str | None:
        node = self._publication.node
        return None if node is None else encode_node(node)

    def _told_node(self, entry: Entry) -> None:
        """Keep what the store says about our own node record."""
        if entry.revision < self._node_entry.revision:
            return
        if entry.value is None:
            self._node_lease = None
        elif self._node_lease is not None and entry.value not in (self._node_entry.value, self._node_value()):
            # If it were written again, two hosts with one identity would overwrite each other for ever.
            log.error("%s was overwritten by another host: do two hosts share one state folder?", entry.key)
            return
        self._node_entry = entry


def _line(record: EndpointRecord) -> tuple[str, str]:
    return endpoint_key(record.network, record.address), encode_endpoint(record)
