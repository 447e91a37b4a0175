"""What the store holds for us, kept as the maps of a View. Pure but for the log.

A map that has been handed out is never changed: a change replaces the map of the one
network that it concerns, so that a reader can tell by identity what is as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from driver.control import EndpointRecord, NodeRecord, View
from driver.control.records import (
    NODES,
    Scope,
    Unreadable,
    address_of,
    decode_endpoint,
    decode_node,
    scope_of,
)
from driver.values import Address, NetworkId, NodeId

log = logging.getLogger(__name__)

K = TypeVar("K")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store says of one key: its value, or None for "nothing" (any more), as of a revision."""

    key: str
    value: str | None
    revision: int


class Table:
    """The nodes and the followed networks, as far as they have been read."""

    def __init__(self) -> None:
        self.nodes: MappingProxyType[NodeId, NodeRecord] = MappingProxyType({})
        self.endpoints: dict[NetworkId, MappingProxyType[Address, EndpointRecord]] = {}
        self._refused: dict[Scope, set[str]] = {}
        """The keys whose records cannot be read: each is logged when it becomes so."""

    def view(self, connected: bool, networks: Iterable[NetworkId]) -> View:
        """Return all that is known of *networks*; those not read yet are left out."""
        known = {n: self.endpoints[n] for n in networks if n in self.endpoints}
        return View(connected, self.nodes, MappingProxyType(known))

    def count(self, scope: Scope) -> int:
        """Return how many keys of *scope* there are, readable or not."""
        rows = self.nodes if scope is None else self.endpoints.get(scope, {})
        return len(rows) + len(self._refused.get(scope, ()))

    def load(self, scope: Scope, entries: Iterable[Entry]) -> None:
        """Replace all that is known of *scope*; what is equal keeps its map."""
        entries = list(entries)
        self._refused[scope] = self._refused.get(scope, set()) & {entry.key for entry in entries}
        if scope is None:
            nodes: dict[NodeId, NodeRecord] = {}
            self._write(None, nodes, entries, _node_of, decode_node)
            if nodes != self.nodes:
                self.nodes = MappingProxyType(nodes)
            return
        rows: dict[Address, EndpointRecord] = {}
        self._write(scope, rows, entries, address_of, decode_endpoint)
        if rows != self.endpoints.get(scope):
            self.endpoints[scope] = MappingProxyType(rows)

    def forget(self, scope: NetworkId) -> None:
        """Drop a network that is not followed any more."""
        self.endpoints.pop(scope, None)
        self._refused.pop(scope, None)

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take in changes; those of networks that have not been read are ignored."""
        for scope, part in _by_scope(entries).items():
            if scope is None:
                nodes = self.nodes.copy()
                self._write(None, nodes, part, _node_of, decode_node)
                self.nodes = MappingProxyType(nodes)
            elif scope in self.endpoints:
                rows = self.endpoints[scope].copy()
                self._write(scope, rows, part, address_of, decode_endpoint)
                self.endpoints[scope] = MappingProxyType(rows)

    def _write(
        self,
        scope: Scope,
        rows: dict[K, R],
        entries: Iterable[Entry],
        name: Callable[[str], K],
        decode: Callable[[str, str], R],
    ) -> None:
        refused = self._refused.setdefault(scope, set())
        for entry in entries:
            try:
                key = name(entry.key)
                rows.pop(key, None)
                if entry.value is not None:
                    rows[key] = decode(entry.key, entry.value)
                refused.discard(entry.key)
            except Unreadable as error:
                if entry.value is None:
                    refused.discard(entry.key)
                elif entry.key not in refused:
                    refused.add(entry.key)
                    log.warning("record skipped: %s", error)


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
