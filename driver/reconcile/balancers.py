"""Services with virtual addresses: what the Swarm's leader says, and what follows for this host. Pure.

Three rules decide where a connection to a virtual address goes:

* The leader's word stands until it says something else, also while the store is away and while a new
  store has yet to hear from it.
* A backend that no host announces (any more) gets nothing, whatever the leader says: it knows of an end
  later than we do. As long as this host does not know what others announce, it takes the leader's word.
* A backend on a host that is away from the store gets nothing while there is another one.

A connection keeps its backend whatever the leader says, for that may be on its way out, until no host
announces the backend any more: then its container or its whole host is gone.
"""

from __future__ import annotations

from collections.abc import Mapping

from driver.kernel.kinds import Balancer, Services
from driver.kernel.names import namespace_name
from driver.kernel.objects import Key
from driver.wish.model import Phase
from driver.wish.state import State
from driver.wish.values import Address, NetworkId


def usable(state: State, network: NetworkId) -> Services | None:
    """Return where each virtual address leads for this host's containers; None while that is unknown."""
    services = state.services.get(network)
    if services is None:
        return None
    peers, there = state.peers.entries.get(network, {}), announced(state, network)
    away = {id_ for id_, node in state.peers.nodes.items() if node.stale_since is not None}
    synced = network in state.peers.synced

    def well(backend: Address) -> bool:
        return backend not in peers or peers[backend].node not in away

    found: dict[Address, tuple[Address, ...]] = {}
    for vip, service in services.items():
        if vip.version == 4 and vip not in there:
            known = service.backends
            if synced and not there.issuperset(known):
                known = tuple(filter(there.__contains__, known))
            found[vip] = (tuple(filter(well, known)) if away else known) or known
    return found


def announced(state: State, network: NetworkId) -> frozenset[Address]:
    """Return the addresses that somebody has in *network*, here or on another host."""
    here = (a for e in state.receivers() if e.network == network for a in e.addresses)
    return frozenset(here).union(state.peers.entries.get(network, {}))


def balancers(
    state: State, services: Mapping[NetworkId, Services | None]
) -> tuple[dict[str, dict[Key, Balancer]], set[Key]]:
    """Return what each sandbox must hold, and the keys of what must stay as it is.

    Sandboxes that must hold nothing are included.
    """
    wanted: dict[str, dict[Key, Balancer]] = {}
    kept: set[Key] = set()
    for endpoint in state.endpoints.values():
        if not endpoint.sandbox:
            continue
        of_sandbox = wanted.setdefault(endpoint.sandbox, {})
        if endpoint.phase is not Phase.JOINED or endpoint.id in state.doubtful:
            continue
        known = services.get(endpoint.network)
        name, turn = namespace_name(endpoint.network), _turn(endpoint.id)
        balancer = Balancer(endpoint.sandbox, name, known or {}, turn)
        if known is None:
            kept.add(balancer.key)
        elif known:
            of_sandbox[balancer.key] = balancer
    return wanted, kept


def _turn(endpoint: str) -> int:
    """Return with which backend a container begins: by its id, which is random."""
    return sum(endpoint.encode())
