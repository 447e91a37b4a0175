"""What the store holds for us, kept as the maps of a View. Pure but for the log.

A map that has been handed out is never changed: a change replaces the map of the one
network that it concerns, so that a reader can tell by identity what has not changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from driver.cluster.ledger.codec import (
    NODES,
    Scope,
    Unreadable,
    address_of,
    decode_endpoint,
    decode_leader,
    decode_node,
    decode_service,
    endpoints_of,
    is_leader_key,
    is_services,
    leader_key,
    network_of,
    scope_of,
    services_of,
    speaker_of,
)
from driver.wish.records import ServiceRecord, View
from driver.wish.values import Address, NetworkId, NodeId

log = logging.getLogger(__name__)

K = TypeVar("K")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store says about one key: its value, or None for "nothing" (any more), as of a revision."""

    key: str
    value: str | None
    revision: int


class Table:
    """The nodes and the followed networks, as far as they have been read."""

    def __init__(self) -> None:
        self._parts: dict[Scope, _Part[Any, Any]] = {NODES: _part_of(NODES)}
        self._services: dict[NetworkId, tuple[object, Mapping[Address, ServiceRecord]]] = {}
        """By network: the rows that the map was made of, and the map."""

    @property
    def known(self) -> set[Scope]:
        """The scopes of networks that have been read."""
        return self._parts.keys() - {NODES}

    def view(self, connected: bool, networks: Iterable[NetworkId]) -> View:
        """Return all that is known of *networks*; those not read yet are left out."""
        wanted = list(networks)
        endpoints = {n: self._parts[s].rows for n in wanted if (s := endpoints_of(n)) in self._parts}
        services = {n: found for n in wanted if (found := self._services_in(n)) is not None}
        return View(
            connected, self._parts[NODES].rows, MappingProxyType(endpoints), MappingProxyType(services)
        )

    def count(self, scope: Scope) -> int:
        """Return how many keys of *scope* there are, readable or not."""
        part = self._parts.get(scope)
        return len(part.rows) + len(part.refused) if part else 0

    def load(self, scope: Scope, entries: Iterable[Entry]) -> None:
        """Replace all that is known of *scope*; what is equal keeps its map."""
        self._parts.setdefault(scope, _part_of(scope)).load(list(entries))

    def forget(self, scope: Scope) -> None:
        """Drop what is no longer followed."""
        self._parts.pop(scope, None)
        if is_services(scope):
            self._services.pop(network_of(scope), None)

    def take_in(self, entries: Iterable[Entry]) -> None:
        """Take in changes; those of networks that have not been read are ignored."""
        for scope, some in _by_scope(entries).items():
            if scope in self._parts:
                self._parts[scope].take_in(some)

    def _services_in(self, network: NetworkId) -> Mapping[Address, ServiceRecord] | None:
        """Return what the network's leader says; None until one has published everything."""
        part = self._parts.get(services_of(network))
        if part is None or not isinstance(leader := part.rows.get(leader_key(network)), str):
            return None
        known = self._services.get(network)
        if known is None or known[0] is not part.rows:
            services = _said_by(NodeId(leader), part.rows)
            same = known is not None and known[1] == services
            known = (part.rows, known[1] if known and same else MappingProxyType(services))
            self._services[network] = known
        return known[1]


class _Part(Generic[K, R]):
    """The records of one scope."""

    def __init__(self, name: Callable[[str], K], decode: Callable[[str, str], R]) -> None:
        self.rows: MappingProxyType[K, R] = MappingProxyType({})
        self.refused: set[str] = set()
        """The keys whose records cannot be read: each is logged once."""
        self._name = name
        self._decode = decode

    def load(self, entries: Sequence[Entry]) -> None:
        self.refused &= {entry.key for entry in entries}
        rows: dict[K, R] = {}
        self._write(rows, entries)
        if rows != self.rows:
            self.rows = MappingProxyType(rows)

    def take_in(self, entries: Iterable[Entry]) -> None:
        rows = self.rows.copy()
        self._write(rows, entries)
        self.rows = MappingProxyType(rows)

    def _write(self, rows: dict[K, R], entries: Iterable[Entry]) -> None:
        """Drop a row whose record became unreadable: the old value may be wrong, and no other row suffers."""
        for entry in entries:
            try:
                key = self._name(entry.key)
                rows.pop(key, None)
                if entry.value is not None:
                    rows[key] = self._decode(entry.key, entry.value)
                self.refused.discard(entry.key)
            except Unreadable as error:
                if entry.value is None:
                    self.refused.discard(entry.key)
                elif entry.key not in self.refused:
                    self.refused.add(entry.key)
                    log.warning("record skipped: %s", error)


def _part_of(scope: Scope) -> _Part[Any, Any]:
    if scope == NODES:
        return _Part(_node_of, decode_node)
    if is_services(scope):
        return _Part(
            str, lambda key, value: (decode_leader if is_leader_key(key) else decode_service)(key, value)
        )
    return _Part(address_of, decode_endpoint)


def _said_by(leader: NodeId, rows: Mapping[str, object]) -> dict[Address, ServiceRecord]:
    return {
        record.vip: record
        for key, record in rows.items()
        if isinstance(record, ServiceRecord) and speaker_of(key) == leader
    }


def _node_of(key: str) -> NodeId:
    return NodeId(key.removeprefix(NODES))


def _by_scope(entries: Iterable[Entry]) -> dict[Scope, list[Entry]]:
    scopes: dict[Scope, list[Entry]] = {}
    for entry in entries:
        try:
            scopes.setdefault(scope_of(entry.key), []).append(entry)
        except Unreadable as error:
            log.debug("event skipped: %s", error)
    return scopes
