"""Records whose host has been away for very long: found here, removed from the store by any host. Pure.

Only the store is tidied by this. When a host stops *forwarding* to another one is decided
elsewhere, and much earlier.
"""

from __future__ import annotations

from collections.abc import Mapping

from driver.wish.records import EndpointRecord, View
from driver.wish.values import NodeId

Orphans = Mapping[NodeId, list[EndpointRecord]]


class OrphanWatch:
    """Remembers since when each host has been seen to have records but no node key."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._since: dict[NodeId, float] = {}

    def restart(self) -> None:
        """Begin anew: who was away when we lost the store may have been back in the meantime."""
        self._since = {}

    def due(self, view: View, now: float) -> Orphans:
        """Return the records of hosts away for longer than the grace, by host.

        While more hosts are away than there, none are returned: then it is more likely
        that something is wrong with us or with the store.
        """
        absent: dict[NodeId, list[EndpointRecord]] = {}
        for rows in view.endpoints.values():
            for row in rows.values():
                if row.node not in view.nodes:
                    absent.setdefault(row.node, []).append(row)
        self._since = {node: self._since.get(node, now) for node in absent}
        if not view.connected or len(absent) > len(view.nodes):
            return {}
        return {node: rows for node, rows in absent.items() if now - self._since[node] >= self._grace}
