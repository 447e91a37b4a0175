"""The wish: one immutable value, and the transitions between such values. Pure.

How endpoints change is read from the table of their lives (`life`); what goes with that is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from driver.wish.errors import BadRequest, NotFound
from driver.wish.life import LIVES, Event, Life
from driver.wish.model import Endpoint, Host, Network, Peers, Phase
from driver.wish.peers import forget_network
from driver.wish.records import Offer, ServiceRecord
from driver.wish.values import Address, EndpointId, NetworkId, NodeId, Vni, is_of_one_host

_K = TypeVar("_K")
_V = TypeVar("_V")

_LIFE_OF = {(life.phase, life.joining, life.doubtful): life for life in Life}


@dataclass(frozen=True, slots=True)
class State:
    """Everything that this host should be.

    *joining*, *doubtful*, *peers*, *services*, *offer* and *mtu* are soft, the rest is on disk.
    """

    host: Host
    networks: Mapping[NetworkId, Network] = field(default_factory=dict)
    endpoints: Mapping[EndpointId, Endpoint] = field(default_factory=dict)
    allocations: Mapping[NetworkId, tuple[Vni, ...]] = field(default_factory=dict)
    """VNIs handed out as the Swarm's leader."""
    refused: Mapping[NetworkId, str] = field(default_factory=dict)
    """Networks of the Swarm that cannot be had, and why. The engine believes that they are there (ADR 5)."""
    joining: Mapping[EndpointId, object] = field(default_factory=dict)
    """Endpoints whose veth pair must be made now, and the Join that waits: it alone may end that."""
    doubtful: frozenset[NetworkId | EndpointId] = frozenset()
    """What nobody has shown to live: nobody shall send to it, and it holds no address.

    Endpoints are doubtful by the table of their lives. Networks are after a restart, if no endpoint of theirs
    had joined: the call that made or removed the network may have died with the former process. And at any
    time, if all their endpoints are doubtful: an engine that was killed has forgotten its Swarm networks.
    CreateNetwork, CreateEndpoint and Join end a network's doubt.
    """
    peers: Peers = field(default_factory=Peers)
    services: Mapping[NetworkId, Mapping[Address, ServiceRecord]] = field(default_factory=dict)
    """By virtual address, as the Swarm's leader said last; without networks that it has not mentioned."""
    offer: Offer | None = None
    """What we say as the Swarm's leader: nothing when another leads, None while that is not known."""
    mtu: int | None = None
    """The MTU of this host's underlay; None before the kernel was asked."""

    def names(self, network: NetworkId) -> bool:
        """Tell whether there is something to say of a network: what it is, or why it was refused."""
        return network in self.networks or network in self.refused

    def network(self, network: NetworkId) -> Network:
        """Return a network; raise BadRequest if it was refused, else NotFound, with what to do."""
        if network in self.refused:
            raise BadRequest(self.refused[network])
        try:
            return self.networks[network]
        except KeyError:
            raise NotFound(
                f"network {network} is not known on this host: the plugin's state was lost, and the engine "
                "has not told of the network yet: try again in a few seconds; if this lasts, remove the "
                "network and create it again"
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

    def life(self, endpoint: EndpointId) -> Life:
        """Return where an endpoint is in its life; one that is not known is absent."""
        found = self.endpoints.get(endpoint)
        phase = found.phase if found else None
        return _LIFE_OF[phase, endpoint in self.joining, endpoint in self.doubtful]

    def receivers(self) -> list[Endpoint]:
        """Return the endpoints that others may send to."""
        return [e for e in self.endpoints.values() if self.life(e.id).receives]

    def present(self, network: NetworkId) -> list[Endpoint]:
        """Return the network's endpoints that should have a port in the kernel."""
        return [e for e in self.endpoints_of(network) if self.life(e.id).has_port]

    def holder(self, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the local endpoint that has *address* and may still receive at it."""
        holders = (e for e in self.receivers() if e.network == network)
        return next((e for e in holders if address in e.addresses), None)

    def durable(self) -> tuple[object, ...]:
        """Return what must be on disk."""
        return (self.host, self.networks, self.endpoints, self.allocations, self.refused)


def after_restart(state: State) -> State:
    """Return what a new process may believe of what the former one had on disk.

    An endpoint that has left is about to be deleted, and its DeleteEndpoint may have come while
    the plugin was down: the engine does not repeat it.
    """
    believed = _after(state, Event.RESTART, state.endpoints)
    joined = {e.network for e in believed.endpoints.values() if e.id not in believed.doubtful}
    return replace(
        believed, doubtful=believed.doubtful | (state.networks.keys() - joined) | state.refused.keys()
    )


def as_member(state: State, member: str, fresh: NodeId) -> State:
    """Bind this host's identity to *member*; it becomes *fresh* when it was made on something else.

    That is so on a clone of another machine, with a state folder that somebody copied, and in another Swarm:
    two hosts must not have one identity. What belongs to the former Swarm goes then, but for networks in
    which containers still run. An empty *member* is not known at the moment, and changes nothing.

    An identity that is not bound yet is kept where something relies on it: others know its records.
    """
    former = state.host.member
    if member in ("", former):
        return state
    if not former and (state.networks or state.allocations):
        return replace(state, host=replace(state.host, member=member))
    inhabited = {e.network for e in state.endpoints.values() if e.phase is Phase.JOINED}
    gone = [n for n in state.networks if not is_of_one_host(n) and n not in inhabited]
    host = replace(state.host, id=fresh, member=member, swarm_port=None, path_mtu=None)
    left = replace(state, host=host, allocations={})
    for network in gone:
        left = without_network(left, network)
    return left


def with_network(state: State, network: Network) -> State:
    """Add or replace a network."""
    return replace(
        state,
        networks={**state.networks, network.id: network},
        refused=_without(state.refused, network.id),
        doubtful=state.doubtful - {network.id},
    )


def with_refusal(state: State, network: NetworkId, reason: str) -> State:
    """Keep only the *reason* why there is no such network, for whoever wants an endpoint in it."""
    without = without_network(state, network)
    return replace(without, refused={**without.refused, network: reason})


def without_network(state: State, network: NetworkId) -> State:
    """Remove a network or its refusal, the endpoints that nobody deleted, and what was heard of it."""
    left = _after(state, Event.NETWORK_GONE, [e.id for e in state.endpoints_of(network)])
    return replace(
        left,
        networks=_without(state.networks, network),
        refused=_without(state.refused, network),
        doubtful=left.doubtful - {network},
        peers=forget_network(state.peers, network),
        services=_without(state.services, network),
    )


def without_ghost(state: State, network: NetworkId) -> State:
    """Remove a network if it is doubtful still."""
    return without_network(state, network) if network in state.doubtful else state


def claim_number(state: State, now: int) -> int:
    """Return the number of a claim made *now*, in milliseconds since 1970.

    It is higher than all that this host has seen, whatever the clocks say: who takes over an address of which
    it has heard is later than who had it. The clock decides only between hosts that had not heard of each
    other's claims (a hybrid logical clock: Kulkarni et al., OPODIS 2014).
    """
    return max(now, 1 + max([state.peers.latest, *(e.claimed for e in state.endpoints.values())]))


def with_endpoint(state: State, endpoint: Endpoint) -> State:
    """Add or replace an endpoint, whatever its phase says; a replaced one counts as the newest.

    Doubtful ones give way to whoever has one of their addresses now.
    """
    others = [e for e in state.endpoints_of(endpoint.network) if e.id != endpoint.id]
    rivals = [e.id for e in others if e.addresses & endpoint.addresses]
    lives = _following(state, Event.ADDRESS_TAKEN, rivals) | _following(state, Event.CREATE, [endpoint.id])
    endpoints = {**_without(state.endpoints, endpoint.id), endpoint.id: endpoint}
    doubtful = state.doubtful - {endpoint.network}
    return _with_lives(replace(state, endpoints=endpoints, doubtful=doubtful), lives)


def without_endpoint(state: State, endpoint: EndpointId) -> State:
    """Remove an endpoint."""
    return _after(state, Event.DELETE, [endpoint])


def with_join(state: State, network: NetworkId, endpoint: EndpointId, sandbox: str, join: object) -> State:
    """Have an endpoint join *sandbox*: it gets a new port and does not count as gone until *join* has ended.

    Raises NotFound.
    """
    state.endpoint(network, endpoint)
    joining = _after(state, Event.JOIN, [endpoint])
    joined = joining.endpoints[endpoint]
    placed = replace(joined, sandbox=sandbox, multicast=_may_have_multicast(state, joined, sandbox))
    return replace(
        joining,
        endpoints={**joining.endpoints, endpoint: placed},
        joining={**joining.joining, endpoint: join},
        doubtful=joining.doubtful - {network},
    )


def _may_have_multicast(state: State, endpoint: Endpoint, sandbox: str) -> bool:
    """Tell whether nothing else in *sandbox* has multicast: the kernel refuses a second such route."""
    others = (e for e in state.receivers() if e.id != endpoint.id and e.sandbox == sandbox)
    return any(i.version == 4 for i in endpoint.interfaces) and not any(e.multicast for e in others)


def with_join_answered(state: State, endpoint: EndpointId, join: object) -> State:
    """Note that the engine has the veth pair; nothing changes when it is not *join* that waits for it."""
    return _after(state, Event.ANSWERED, [endpoint]) if state.joining.get(endpoint) is join else state


def with_join_undone(state: State, endpoint: EndpointId, join: object) -> State:
    """Undo what *join* asked for; nothing changes when another Join waits for the endpoint."""
    return _after(state, Event.UNDONE, [endpoint]) if state.joining.get(endpoint) is join else state


def with_leave(state: State, endpoint: EndpointId) -> State:
    """Record that an endpoint has left its container."""
    return _after(state, Event.LEAVE, [endpoint])


def with_doubt(state: State, endpoints: Iterable[EndpointId]) -> State:
    """Mark endpoints that no container has any more, and networks that have no others.

    Those that are not joined by now are left out.
    """
    vanished = set(endpoints)
    doubted = _after(state, Event.VANISHED, vanished)
    lost = {id_ for id_ in vanished if doubted.life(id_) is Life.JOINED_DOUBTFUL}
    emptier = {e.network for e in doubted.endpoints.values() if e.id in lost}
    inhabited = {e.network for e in doubted.endpoints.values() if e.id not in doubted.doubtful}
    return replace(doubted, doubtful=doubted.doubtful | (emptier - inhabited))


def without_doubtful(state: State, endpoints: Iterable[EndpointId]) -> State:
    """Remove those of *endpoints* that are doubtful still."""
    return _after(state, Event.FORGOTTEN, endpoints)


def with_allocation(state: State, network: NetworkId, vnis: tuple[Vni, ...]) -> State:
    """Record a Swarm network's VNIs; older records of the same VNIs are stale and go."""
    kept = {n: v for n, v in state.allocations.items() if n != network and not set(v) & set(vnis)}
    return replace(state, allocations={**kept, network: vnis})


def without_allocation(state: State, network: NetworkId) -> State:
    """Forget a Swarm network's VNIs."""
    return replace(state, allocations=_without(state.allocations, network))


def vnis_in_use(state: State, *, besides: NetworkId, asked: bool) -> set[Vni]:
    """Return the VNIs that no other network can have; *asked* tells whether the user names them.

    What remains of a Swarm's network, and is doubtful, gives way to a user: those that live are among the
    leader's allocations. A network of this host keeps its VNI until the engine says that there is none.
    """
    allocated = (v for n, vnis in state.allocations.items() if n != besides for v in vnis)
    others = (n for n in state.networks.values() if n.id != besides)
    kept = (n for n in others if not asked or n.id not in state.doubtful or is_of_one_host(n.id))
    return {*allocated, *(s.vni for n in kept for s in n.segments)}


def _after(state: State, event: Event, endpoints: Iterable[EndpointId]) -> State:
    """Return the state after *event* has happened to each of *endpoints*."""
    return _with_lives(state, _following(state, event, endpoints))


def _following(state: State, event: Event, endpoints: Iterable[EndpointId]) -> dict[EndpointId, Life]:
    """Look up the lives that follow. Callers have refused what is not in the table."""
    return {endpoint: LIVES[event][state.life(endpoint)] for endpoint in endpoints}


def _with_lives(state: State, lives: Mapping[EndpointId, Life]) -> State:
    """Give endpoints these lives; a map in which nothing changes stays the object that it was."""
    endpoints: dict[EndpointId, Endpoint] = {}
    for id_, endpoint in state.endpoints.items():
        phase = lives[id_].phase if id_ in lives else endpoint.phase
        if phase is not None:
            endpoints[id_] = endpoint if phase is endpoint.phase else replace(endpoint, phase=phase)
    joining = {id_: join for id_, join in state.joining.items() if id_ not in lives or lives[id_].joining}
    doubtful = state.doubtful.difference(lives) | {id_ for id_, life in lives.items() if life.doubtful}
    after = replace(
        state,
        endpoints=state.endpoints if endpoints == state.endpoints else endpoints,
        joining=state.joining if joining == state.joining else joining,
        doubtful=doubtful,
    )
    return state if after == state else after


def _without(mapping: Mapping[_K, _V], key: _K) -> dict[_K, _V]:
    return {k: v for k, v in mapping.items() if k != key}
