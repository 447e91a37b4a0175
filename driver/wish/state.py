"""The wish: one immutable value, and the transitions between such values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from driver.wish.errors import NotFound
from driver.wish.model import Endpoint, Host, Network, Peers, Phase
from driver.wish.records import Offer, ServiceRecord
from driver.wish.values import Address, EndpointId, NetworkId, Vni

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class State:
    """Everything that this host should be.

    *joining*, *doubtful*, *peers*, *services* and *offer* are soft, the rest is on disk.
    """

    host: Host
    networks: Mapping[NetworkId, Network] = field(default_factory=dict)
    endpoints: Mapping[EndpointId, Endpoint] = field(default_factory=dict)
    allocations: Mapping[NetworkId, tuple[Vni, ...]] = field(default_factory=dict)
    """VNIs handed out as the Swarm's leader."""
    joining: Mapping[EndpointId, object] = field(default_factory=dict)
    """Endpoints whose veth pair must be made now, and the Join that waits: it alone may end that."""
    doubtful: frozenset[NetworkId | EndpointId] = frozenset()
    """What nobody has shown to live: nobody shall send to it, and it holds no address and no VNI.

    After a restart, endpoints that never joined and networks without one that did: the call that made
    them, or was to remove the network, may have died with the former process, and the engine has
    forgotten them. At any time, joined endpoints that no container has any more, and their network when
    it has no others: an engine that was killed has forgotten its Swarm networks. Endpoints are forgotten
    when they have been doubtful for longer than the engine repeats a call.
    """
    peers: Peers = field(default_factory=Peers)
    services: Mapping[NetworkId, Mapping[Address, ServiceRecord]] = field(default_factory=dict)
    """By virtual address, as the Swarm's leader said last; without networks of which it has not spoken."""
    offer: Offer | None = None
    """What we say as the Swarm's leader: nothing when another leads, None while that is not known."""

    def network(self, network: NetworkId) -> Network:
        """Return a network; raise NotFound with what to do."""
        try:
            return self.networks[network]
        except KeyError:
            raise NotFound(
                f"network {network} is not known on this host: the plugin's state was lost or the network "
                "was made without it; remove the network and create it again"
            ) from None

    def endpoint(self, network: NetworkId, endpoint: EndpointId) -> Endpoint:
        """Return an endpoint of a network; raise NotFound with what to do."""
        found = self.endpoints.get(endpoint)
        if found is None or found.network != network:
            raise NotFound(
                f"endpoint {endpoint} of network {network} is not known on this host: "
                "start the container again"
            )
        return found

    def endpoints_of(self, network: NetworkId) -> list[Endpoint]:
        """Return the network's endpoints on this host, in the order in which they were made."""
        return [e for e in self.endpoints.values() if e.network == network]

    def receivers(self) -> list[Endpoint]:
        """Return the endpoints that others may send to."""
        return [e for e in self.endpoints.values() if e.phase is not Phase.LEFT and e.id not in self.doubtful]

    def holder(self, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the local endpoint that has *address* and may still receive for it."""
        holders = (e for e in self.receivers() if e.network == network)
        return next((e for e in holders if address in e.addresses), None)

    def durable(self) -> tuple[object, ...]:
        """Return what must be on disk."""
        return (self.host, self.networks, self.endpoints, self.allocations)


def after_restart(state: State) -> State:
    """Return what a new process may believe of what the former one had on disk.

    An endpoint that has left is about to be deleted, and its DeleteEndpoint may have come while
    nobody was there: the engine does not say it again.
    """
    endpoints = {k: e for k, e in state.endpoints.items() if e.phase is not Phase.LEFT}
    joined = {k: e.network for k, e in endpoints.items() if e.phase is Phase.JOINED}
    known: frozenset[NetworkId | EndpointId] = frozenset([*state.networks, *endpoints])
    return replace(state, endpoints=endpoints, doubtful=known - {*joined, *joined.values()})


def with_network(state: State, network: Network) -> State:
    """Add or replace a network."""
    networks = {**state.networks, network.id: network}
    return replace(state, networks=networks, doubtful=state.doubtful - {network.id})


def without_network(state: State, network: NetworkId) -> State:
    """Remove a network and the endpoints that nobody deleted."""
    endpoints = {k: e for k, e in state.endpoints.items() if e.network != network}
    return replace(
        state,
        networks=_without(state.networks, network),
        endpoints=endpoints,
        joining={k: join for k, join in state.joining.items() if k in endpoints},
        doubtful=state.doubtful & {*state.networks, *endpoints} - {network},
    )


def without_ghost(state: State, network: NetworkId) -> State:
    """Remove a network if it is doubtful still."""
    return without_network(state, network) if network in state.doubtful else state


def with_endpoint(state: State, endpoint: Endpoint) -> State:
    """Add or replace an endpoint; a replaced one counts as the newest.

    Doubtful ones give way to whoever has one of their addresses now.
    """
    stale = {
        e.id
        for e in state.endpoints_of(endpoint.network)
        if e.id == endpoint.id or (e.id in state.doubtful and e.addresses & endpoint.addresses)
    }
    kept = {k: e for k, e in state.endpoints.items() if k not in stale}
    return replace(
        state,
        endpoints={**kept, endpoint.id: endpoint},
        joining=_without(state.joining, endpoint.id),
        doubtful=state.doubtful - {*stale, endpoint.id, endpoint.network},
    )


def without_endpoint(state: State, endpoint: EndpointId) -> State:
    """Remove an endpoint."""
    return replace(
        state,
        endpoints=_without(state.endpoints, endpoint),
        joining=_without(state.joining, endpoint),
        doubtful=state.doubtful - {endpoint},
    )


def with_phase(state: State, endpoint: Endpoint, phase: Phase) -> State:
    """Move an endpoint to another phase."""
    moved = {**state.endpoints, endpoint.id: replace(endpoint, phase=phase)}
    return replace(state, endpoints=moved, joining=_without(state.joining, endpoint.id))


def with_join(state: State, endpoint: Endpoint, sandbox: str, join: object) -> State:
    """Have an endpoint join *sandbox*: it gets a new port and is not gone until *join* has ended."""
    joined = replace(endpoint, phase=Phase.JOINED, sandbox=sandbox)
    return replace(
        state,
        endpoints={**state.endpoints, endpoint.id: joined},
        joining={**state.joining, endpoint.id: join},
        doubtful=state.doubtful - {endpoint.id, endpoint.network},
    )


def with_join_answered(state: State, endpoint: EndpointId, join: object) -> State:
    """Note that the engine has the veth pair; nothing changes when *join* is not what waits for it."""
    if state.joining.get(endpoint) is not join:
        return state
    return replace(state, joining=_without(state.joining, endpoint))


def with_join_undone(state: State, endpoint: EndpointId, join: object) -> State:
    """Take back what *join* has asked for; nothing changes when it is not what waits for the endpoint."""
    if state.joining.get(endpoint) is not join:
        return state
    return with_phase(state, state.endpoints[endpoint], Phase.CREATED)


def with_doubt(state: State, endpoints: Iterable[EndpointId]) -> State:
    """Mark endpoints that no container has any more, and networks that have no others.

    Those that are not joined by now are left out.
    """
    known = [state.endpoints[endpoint] for endpoint in endpoints if endpoint in state.endpoints]
    gone = {e.id: e.network for e in known if e.phase is Phase.JOINED and e.id not in state.joining}
    left = {e.network for e in state.endpoints.values() if e.id not in state.doubtful | gone.keys()}
    return replace(state, doubtful=state.doubtful | gone.keys() | (set(gone.values()) - left))


def without_doubtful(state: State, endpoints: Iterable[EndpointId]) -> State:
    """Remove those of *endpoints* that are doubtful still."""
    gone = state.doubtful & set(endpoints)
    return replace(
        state,
        endpoints={k: e for k, e in state.endpoints.items() if k not in gone},
        doubtful=state.doubtful - gone,
    )


def with_allocation(state: State, network: NetworkId, vnis: tuple[Vni, ...]) -> State:
    """Record a Swarm network's VNIs; older records of the same VNIs are stale and go."""
    kept = {n: v for n, v in state.allocations.items() if n != network and not set(v) & set(vnis)}
    return replace(state, allocations={**kept, network: vnis})


def without_allocation(state: State, network: NetworkId) -> State:
    """Forget a Swarm network's VNIs."""
    return replace(state, allocations=_without(state.allocations, network))


def vnis_in_use(state: State, *, besides: NetworkId, doubtful: bool = True) -> set[Vni]:
    """Return the VNIs of all other networks that this host knows of, or without the doubtful ones."""
    allocated = (v for n, vnis in state.allocations.items() if n != besides for v in vnis)
    others = (n for n in state.networks.values() if n.id != besides)
    known = (n for n in others if doubtful or n.id not in state.doubtful)
    return {*allocated, *(s.vni for n in known for s in n.segments)}


def _without(mapping: Mapping[_K, _V], key: _K) -> dict[_K, _V]:
    return {k: v for k, v in mapping.items() if k != key}
