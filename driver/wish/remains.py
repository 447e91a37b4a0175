"""What the kernel still has of a network whose record was lost, and the record made from that. Pure.

The engine does not say CreateNetwork again for a network that it has (moby libnetwork/controller.go), nor
CreateEndpoint and Join for a container that runs. So after `docker plugin rm` and `install`, or with an empty
state folder, what a former process left in the kernel and what the engine answers are all that there is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface

from driver.wish.model import Endpoint, Network, Peer, Phase, Subnet
from driver.wish.options import build_segments, choose_vnis, parse_network_options, segments_of
from driver.wish.peers import adopt
from driver.wish.state import State, vnis_in_use, with_allocation
from driver.wish.values import Address, EndpointId, Interface, Mac, NetworkId, Prefix, Vni, mac_of


@dataclass(frozen=True, slots=True)
class Remains:
    """What the kernel has of one network that the wish does not know."""

    network: NetworkId
    port: int
    """The UDP port of its tunnels."""
    vtep: Address | None = None
    """Their outer source address."""
    vnis: Mapping[Prefix, Vni] = field(default_factory=dict)
    gateways: Mapping[Prefix, Address] = field(default_factory=dict)
    endpoints: Mapping[EndpointId, Sequence[Address]] = field(default_factory=dict)
    """The ports whose other end a container has, and its addresses."""
    macs: Mapping[EndpointId, Mac] = field(default_factory=dict)
    """Those of its endpoints that the kernel knows."""
    rows: Mapping[Address, Peer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What the engine says about one network of ours."""

    network: NetworkId
    subnets: Sequence[Subnet]
    options: Mapping[str, str]
    internal: bool
    of_swarm: bool
    macs: Mapping[EndpointId, Mac] = field(default_factory=dict)
    """Of the endpoints that containers have on this host."""


def recovered(state: State, told: Told, remains: Remains | None, default_port: int, now: float) -> State:
    """Return the state with a network that was lost; the same state when it is known.

    Of a Swarm's networks this host has only those in which it has containers: the engine makes any other
    when it needs it. A network without containers is doubtful, since it may have been removed meanwhile.
    *now* is monotonic seconds. Raises BadRequest and Conflict when what the engine says makes no network.
    """
    if told.of_swarm and (vnis := parse_network_options(told.options, default_port).vnis):
        state = state if told.network in state.allocations else with_allocation(state, told.network, vnis)
    if told.network in state.networks or (told.of_swarm and not (remains and remains.endpoints)):
        return state
    network = _network(state, told, remains, default_port)
    endpoints = _endpoints(network, told, remains) if remains else []
    host = state.host
    if remains and host.vtep is None:  # the engine says it a moment later; until then no tunnel may change
        host = replace(host, vtep=remains.vtep)
    return replace(
        state,
        host=host,
        networks={**state.networks, network.id: network},
        endpoints={**state.endpoints, **{endpoint.id: endpoint for endpoint in endpoints}},
        doubtful=state.doubtful if endpoints else state.doubtful | {network.id},
        peers=adopt(state.peers, network.id, remains.rows, now) if remains else state.peers,
    )


def with_sandboxes(state: State, sandboxes: Mapping[EndpointId, str]) -> State:
    """Note the containers' namespaces of endpoints that lack them."""
    lacking = {e.id: e for e in state.endpoints.values() if not e.sandbox and e.id in sandboxes}
    found = {id_: replace(endpoint, sandbox=sandboxes[id_]) for id_, endpoint in lacking.items()}
    return replace(state, endpoints={**state.endpoints, **found})


def _network(state: State, told: Told, remains: Remains | None, default_port: int) -> Network:
    parsed = parse_network_options(told.options, default_port)
    subnets = (
        [_as_in_kernel(subnet, remains.gateways) for subnet in told.subnets] if remains else told.subnets
    )
    groups = segments_of(subnets)
    vnis = _vnis(groups, remains.vnis) if remains else ()
    if not vnis:
        used = () if told.of_swarm else vnis_in_use(state, besides=told.network, asked=bool(parsed.vnis))
        vnis = choose_vnis(told.network, parsed.vnis, len(groups), used)
    port = remains.port if remains and remains.port else parsed.port
    segments = build_segments(vnis, groups)
    return Network(told.network, segments, port, parsed.mtu, parsed.underlay_mtu, told.internal)


def _as_in_kernel(subnet: Subnet, gateways: Mapping[Prefix, Address]) -> Subnet:
    """An engine does not always say which gateway it has chosen."""
    return replace(subnet, gateway=gateways.get(subnet.prefix))


def _vnis(groups: Sequence[Sequence[Subnet]], known: Mapping[Prefix, Vni]) -> tuple[Vni, ...]:
    """Return the VNI that the kernel has for each group of subnets; none unless it has all."""
    found = [next((known[s.prefix] for s in group if s.prefix in known), None) for group in groups]
    return () if None in found else tuple(vni for vni in found if vni is not None)


def _endpoints(network: Network, told: Told, remains: Remains) -> Collection[Endpoint]:
    """Return the endpoints of containers that run, as their Joins left them."""
    found = []
    for id_, addresses in remains.endpoints.items():
        interfaces = tuple(i for a in addresses if (i := _interface(network, a)) is not None)
        if interfaces:
            mac = told.macs.get(id_) or remains.macs.get(id_) or mac_of(interfaces[0].ip)
            # It may have the route: a second one would be refused by the kernel (state.with_join).
            found.append(Endpoint(id_, network.id, interfaces, mac, Phase.JOINED, multicast=True))
    return found


def _interface(network: Network, address: Address) -> Interface | None:
    segment = network.segment_of(address)
    subnet = segment.subnet_of(address) if segment else None
    return ip_interface((address, subnet.prefix.prefixlen)) if subnet else None
