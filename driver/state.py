"""The wish: one immutable value, and the transitions between such values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from driver.errors import NotFound
from driver.model import Endpoint, Host, Network, Peers, Phase
from driver.values import Address, EndpointId, NetworkId, Vni

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class State:
    """Everything that this host should be. *joining*, *gone* and *peers* are soft; the rest is on disk."""

    host: Host
    networks: Mapping[NetworkId, Network] = field(default_factory=dict)
    endpoints: Mapping[EndpointId, Endpoint] = field(default_factory=dict)
    allocations: Mapping[NetworkId, tuple[Vni, ...]] = field(default_factory=dict)
    """VNIs handed out as the Swarm's leader."""
    joining: frozenset[EndpointId] = frozenset()
    """Endpoints whose veth pair must be made now: a Join waits for it."""
    gone: frozenset[EndpointId] = frozenset()
    """Joined endpoints whose port the kernel no longer has: their containers ended unseen."""
    peers: Peers = field(default_factory=Peers)

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

    def may_receive(self, endpoint: Endpoint) -> bool:
        """Tell whether others may send to a local endpoint."""
        return endpoint.phase is not Phase.LEFT and endpoint.id not in self.gone

    def holder(self, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the local endpoint that has *address* and may still receive for it."""
        holders = (e for e in self.endpoints_of(network) if address in {i.ip for i in e.interfaces})
        return next(filter(self.may_receive, holders), None)

    def durable(self) -> tuple[object, ...]:
        """Return what must be on disk."""
        return (self.host, self.networks, self.endpoints, self.allocations)


def with_network(state: State, network: Network) -> State:
    """Add or replace a network."""
    return replace(state, networks={**state.networks, network.id: network})


def without_network(state: State, network: NetworkId) -> State:
    """Remove a network and the endpoints that nobody deleted."""
    endpoints = {k: e for k, e in state.endpoints.items() if e.network != network}
    return replace(
        state,
        networks=_without(state.networks, network),
        endpoints=endpoints,
        joining=state.joining & endpoints.keys(),
        gone=state.gone & endpoints.keys(),
    )


def with_endpoint(state: State, endpoint: Endpoint) -> State:
    """Add or replace an endpoint; a replaced one counts as the newest."""
    endpoints = {**_without(state.endpoints, endpoint.id), endpoint.id: endpoint}
    return replace(state, endpoints=endpoints, gone=state.gone - {endpoint.id})


def without_endpoint(state: State, endpoint: EndpointId) -> State:
    """Remove an endpoint."""
    return replace(
        state,
        endpoints=_without(state.endpoints, endpoint),
        joining=state.joining - {endpoint},
        gone=state.gone - {endpoint},
    )


def with_phase(state: State, endpoint: Endpoint, phase: Phase, *, joining: bool = False) -> State:
    """Move an endpoint to another phase. One that is *joining* gets a new port and is not gone."""
    this = {endpoint.id}
    moved = {**state.endpoints, endpoint.id: replace(endpoint, phase=phase)}
    if joining:
        return replace(state, endpoints=moved, joining=state.joining | this, gone=state.gone - this)
    return replace(state, endpoints=moved, joining=state.joining - this)


def with_gone(state: State, endpoints: Iterable[EndpointId]) -> State:
    """Mark endpoints whose ports have vanished; those that are not joined by now are left out."""
    known = [state.endpoints[endpoint] for endpoint in endpoints if endpoint in state.endpoints]
    gone = {e.id for e in known if e.phase is Phase.JOINED and e.id not in state.joining}
    return replace(state, gone=state.gone | gone)


def with_allocation(state: State, network: NetworkId, vnis: tuple[Vni, ...]) -> State:
    """Record a Swarm network's VNIs; older records of the same VNIs are stale and go."""
    kept = {n: v for n, v in state.allocations.items() if n != network and not set(v) & set(vnis)}
    return replace(state, allocations={**kept, network: vnis})


def without_allocation(state: State, network: NetworkId) -> State:
    """Forget a Swarm network's VNIs."""
    return replace(state, allocations=_without(state.allocations, network))


def vnis_in_use(state: State, *, besides: NetworkId) -> set[Vni]:
    """Return the VNIs of all other networks that this host knows of."""
    allocated = (v for n, vnis in state.allocations.items() if n != besides for v in vnis)
    present = (s.vni for n in state.networks.values() if n.id != besides for s in n.segments)
    return {*allocated, *present}


def _without(mapping: Mapping[_K, _V], key: _K) -> dict[_K, _V]:
    return {k: v for k, v in mapping.items() if k != key}
