"""Removes from a store that outlives hosts and networks what nobody has any more.

A network's records are tidied by the hosts that follow it. Those of a network that nobody follows, because
it was removed while its hosts were away, would stay for ever. So every host walks through the store, from
network to network by their keys alone, and looks into those that it does not follow.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from driver.cluster.etcd.client import EtcdClient
from driver.cluster.etcd.exchange import Exchange
from driver.cluster.ledger.claims import Withdraw
from driver.cluster.ledger.codec import NETWORKS, NODES, Scope, Unreadable, end_of, node_key, scope_of
from driver.cluster.ledger.orphans import OrphanWatch, by_owner
from driver.cluster.ledger.table import Entry
from driver.wish.values import NodeId

log = logging.getLogger(__name__)

_STEPS: Final = 20
"""How many networks all hosts together look at in a minute, or each of them one."""
_SAMPLE: Final = 60
"""How many records of a network are read: they fit into one transaction. The rest has its turn when these are
gone."""


class Sweep:
    """Walks on with every call of `step`."""

    def __init__(self, exchange: Exchange, orphans: OrphanWatch) -> None:
        self._exchange = exchange
        self._orphans = orphans
        self._next = NETWORKS

    def steps(self, hosts: int) -> int:
        """Return how many networks each of so many *hosts* should look at."""
        return max(1, _STEPS // max(1, hosts))

    def step(self, client: EtcdClient, now: float) -> None:
        """Look at the next network in the store; raises EtcdError."""
        key = client.first_key(self._next, end_of(NETWORKS))
        if key is None:
            self._next = NETWORKS
            return
        try:
            scope = scope_of(key)
        except Unreadable:
            self._next = Scope(key + "\0")
            return
        self._next = Scope(end_of(scope))
        with self._exchange.changed:
            followed = {NODES, *self._exchange.ledger.followed()}
        if scope not in followed:
            self._remove(client, scope, client.sample(scope, _SAMPLE), now)

    def _remove(self, client: EtcdClient, scope: Scope, entries: Collection[Entry], now: float) -> None:
        """Remove what is ours and not wanted, and what is left of hosts long gone where no other is left."""
        with self._exchange.changed:
            ours = [e for e in entries if self._exchange.ledger.is_leftover(e)]
        if ours:
            client.change([Withdraw(entry.key, entry.value or "") for entry in ours])
            log.info("removed %d records of ours from %s, which nobody here has any more", len(ours), scope)
        others = by_owner(entry for entry in entries if entry not in ours)
        if all(self._orphans.gone(node, now) for node in others):
            for node, records in others.items():
                self._remove_of(client, node, records)

    def _remove_of(self, client: EtcdClient, node: NodeId, records: Collection[Entry]) -> None:
        removed = client.remove_orphans(records, node_key(node))
        log.info("removed %d records of node %s, which has been away for long", removed, node)
