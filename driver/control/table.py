"""What the store holds for us, kept as the maps of a View. Pure but for the log.

A map that has been handed out is never changed: a change replaces the map of the one
network that it concerns, so that a reader can tell by identity what is as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from driver.control import EndpointRecord, NodeRecord, View
from driver.control.records import Scope, Unreadable, address_of, decode_endpoint, decode_node, scope_of
from driver.values import Address, NetworkId, NodeId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store says of one key: its value, or None for "nothing" (any more), as of a revision."""

    key: str
    value: str | None
    revision: int


class Table:
    """The nodes and the followed networks, as far as they have been read."""

    def __init__(self) -> None:
        self.nodes: Mapping[NodeId, NodeRecord] = MappingProxyType({})
        self.endpoints: dict[NetworkId, Mapping[Address, EndpointRecord]] = {}
        self._refused: set[str] = set()

    def view(self, connected: bool, networks: Iterable[NetworkId]) -> View:
        """Return all that is known of *networks*; those not read yet are left out."""
        known = {n: self.endpoints[n] for n in networks if n in self.endpoints}
        return View(connected, self.nodes, MappingProxyType(known))

    def load(self, scope: Scope, entries: Iterable[Entry]) -> None:
        """Replace all that is known of *scope*; what is equal keeps its map."""
        if scope is None:
            nodes: dict[NodeId, NodeRecord] = {}
            self._write_nodes(nodes, entries)
            if nodes != self.nodes:
                self.nodes = MappingProxyType(nodes)
            return
        rows: dict[Address, EndpointRecord] = {}
        self._write_rows(rows, entries)
        if rows != self.endpoints.get(scope):
            self.endpoints[scope] = MappingProxyType(rows)

    def forget(self, scope: NetworkId) -> None:
        """Drop a network that is not followed any more."""
        self.endpoints.pop(scope, None)

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take in changes; those of networks that have not been read are ignored."""
        for scope, part in _by_scope(entries).items():
            if scope is None:
                nodes = dict(self.nodes)
                self._write_nodes(nodes, part)
                self.nodes = MappingProxyType(nodes)
            elif scope in self.endpoints:
                rows = dict(self.endpoints[scope])
                self._write_rows(rows, part)
                self.endpoints[scope] = MappingProxyType(rows)

    def _write_nodes(self, nodes: dict[NodeId, NodeRecord], entries: Iterable[Entry]) -> None:
        for entry in entries:
            nodes.pop(NodeId(entry.key.rpartition("/")[2]), None)
            try:
                if entry.value is not None:
                    node = decode_node(entry.key, entry.value)
                    nodes[node.id] = node
            except Unreadable as error:
                self._refuse(entry.key, error)

    def _write_rows(self, rows: dict[Address, EndpointRecord], entries: Iterable[Entry]) -> None:
        for entry in entries:
            try:
                rows.pop(address_of(entry.key), None)
                if entry.value is not None:
                    row = decode_endpoint(entry.key, entry.value)
                    rows[row.address] = row
            except Unreadable as error:
                self._refuse(entry.key, error)

    def _refuse(self, key: str, error: Unreadable) -> None:
        """Say once per key that its record is skipped."""
        if key not in self._refused:
            self._refused.add(key)
            log.warning("record skipped: %s", error)


def _by_scope(entries: Iterable[Entry]) -> dict[Scope, list[Entry]]:
    scopes: dict[Scope, list[Entry]] = {}
    for entry in entries:
        try:
            scopes.setdefault(scope_of(entry.key), []).append(entry)
        except Unreadable as error:
            log.debug("event skipped: %s", error)
    return scopes
