"""Records whose host has been away for very long: found here, and removed from the store by any host. Pure.

This only tidies the store. When to stop *forwarding* to a host is decided elsewhere, and
much earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from driver.cluster.ledger.codec import Unreadable, owner_of
from driver.cluster.ledger.table import Entry
from driver.wish.records import EndpointRecord, View
from driver.wish.values import NodeId

Orphans = Mapping[NodeId, list[EndpointRecord]]


class OrphanWatch:
    """Remembers when each host was seen last."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._began: float | None = None
        self._seen: dict[NodeId, float] = {}

    def restart(self) -> None:
        """Begin anew: who was away when we lost the store may have been back in the meantime."""
        self._began = None

    def look(self, nodes: Collection[NodeId], now: float) -> None:
        """Take note of the hosts that are there at second *now*."""
        self._began = now if self._began is None else self._began
        lately = {node: at for node, at in self._seen.items() if now - at < self._grace}
        self._seen = {**lately, **dict.fromkeys(nodes, now)}

    def gone(self, node: NodeId, now: float) -> bool:
        """Tell whether *node* has been away for longer than the grace, and we have looked all the time."""
        since = now if self._began is None else max(self._began, self._seen.get(node, self._began))
        return now - since >= self._grace

    def due(self, view: View, now: float) -> Orphans:
        """Return the records of hosts away for longer than the grace, by host.

        While more hosts are away than present, none are returned: then the fault is more
        likely ours or the store's.
        """
        self.look(view.nodes.keys(), now)
        absent: dict[NodeId, list[EndpointRecord]] = {}
        for rows in view.endpoints.values():
            for row in rows.values():
                if row.node not in view.nodes:
                    absent.setdefault(row.node, []).append(row)
        if not view.connected or len(absent) > len(view.nodes):
            return {}
        return {node: rows for node, rows in absent.items() if self.gone(node, now)}


def by_owner(entries: Iterable[Entry]) -> dict[NodeId, list[Entry]]:
    """Return the records by the host that has written them, without those that do not tell."""
    found: dict[NodeId, list[Entry]] = {}
    for entry in entries:
        try:
            found.setdefault(owner_of(entry.key, entry.value or ""), []).append(entry)
        except Unreadable:
            continue
    return found
