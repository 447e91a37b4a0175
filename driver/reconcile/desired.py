"""What the kernel of this host should hold for a network. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from ipaddress import IPv6Address, ip_interface

from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Shortcut,
    Vxlan,
)
from driver.kernel.names import (
    ALIAS_MAX,
    ALIAS_PREFIX,
    bridge_name,
    container_name,
    namespace_name,
    port_name,
    vxlan_name,
)
from driver.kernel.objects import KernelObject, KernelState, Key, index
from driver.wish.life import Life
from driver.wish.model import Endpoint, Host, Network, Peer, Segment, Underlay
from driver.wish.state import State
from driver.wish.values import HOST, Address, EndpointId, NetworkId, Scope, bridge_mac

IPV4_OVERHEAD = 50
"""Bytes of outer Ethernet payload: IPv4 20 + UDP 8 + VXLAN 8 + inner Ethernet 14."""
IPV6_OVERHEAD = 70

FALLBACK_UNDERLAY = Underlay("", 1500)
"""For a host without any route: its networks reach only its own containers."""


def container_mtu(network: Network, host: Host, underlay: Underlay) -> int:
    """Return the MTU that containers see: the user's, else the underlay's minus the overhead.

    The underlay's is what carries to every host, and never more than this host's own device takes.
    """
    if network.mtu is not None:
        return network.mtu
    overhead = IPV6_OVERHEAD if host.vtep is not None and host.vtep.version == 6 else IPV4_OVERHEAD
    return (network.underlay_mtu or min(underlay.mtu, host.path_mtu or underlay.mtu)) - overhead


def desired(
    state: State, scope: Scope, underlay: Underlay = FALLBACK_UNDERLAY, *, shortcuts: bool = True
) -> KernelState:
    """Return everything that must exist in this host's kernel for a network or for HOST, and nothing else.

    For a network, nothing must exist while it has no container on this host. *shortcuts* are only for
    kernels that have them.
    """
    found = of_host(state) if scope is HOST else _of_network(state, scope, underlay, shortcuts=shortcuts)
    return index(found)


def of_host(state: State) -> Collection[KernelObject]:
    """Return what must exist for the host itself, whatever networks it has."""
    return ()


def _of_network(
    state: State, network_id: NetworkId, underlay: Underlay, *, shortcuts: bool
) -> Collection[KernelObject]:
    """Cover all subnets as soon as one has a container: the bridges route between them."""
    network = state.networks.get(network_id)
    present = state.present(network_id)
    if network is None or not present:
        return ()
    mtu = container_mtu(network, state.host, underlay)
    objects: list[KernelObject] = [Namespace(namespace_name(network_id))]
    for segment in network.segments:
        objects += _segment(state, network, segment, mtu, _bound_to(state.host.vtep, underlay))
        objects += _forwarding(state, network, segment)
    objects += [p for e in present if (p := _port(state, network, e, mtu)) is not None]
    if shortcuts:
        objects += _shortcuts(network, present)
    return objects


def vanished(
    state: State, network: NetworkId, have: KernelState, ends: Collection[str] = ()
) -> frozenset[EndpointId]:
    """Return the joined endpoints that no container has any more.

    Their ports are not in *have*, what the kernel holds of the network, under any name: the container end
    went with its sandbox, and the pair cannot be recreated. Or their container ends are among *ends*, those
    in the host's namespace: the engine has given them back.
    """
    namespace = namespace_name(network)
    aliases = {obj.alias for obj in have.values() if isinstance(obj, Port)}
    return frozenset(
        e.id
        for e in state.endpoints_of(network)
        if state.life(e.id) is Life.JOINED
        if (Key(Port.kind, namespace, port_name(e.id)) not in have and _port_alias(e) not in aliases)
        or container_name(e.id) in ends
    )


def _bound_to(vtep: Address | None, underlay: Underlay) -> Address | None:
    """Return the tunnels' own address: the VTEP address where this host has it, else none of its family."""
    if vtep is None or underlay.has_vtep:
        return vtep
    return None if vtep.version == 4 else IPv6Address(0)


def _segment(
    state: State, network: Network, segment: Segment, mtu: int, local: Address | None
) -> Iterator[KernelObject]:
    """Give the bridge a MAC of this host alone: hosts share gateway addresses, but must not share MACs."""
    namespace = namespace_name(network.id)
    bridge = bridge_name(segment.vni)
    subnets = " ".join(str(s.prefix) for s in segment.subnets)
    alias = f"{ALIAS_PREFIX}network {network.id} {subnets}"[:ALIAS_MAX]
    yield Bridge(namespace, bridge, bridge_mac(f"{state.host.id} {segment.vni}"), mtu, alias)
    for subnet in segment.subnets:
        if subnet.gateway is not None:
            yield BridgeAddress(namespace, bridge, ip_interface((subnet.gateway, subnet.prefix.prefixlen)))
    yield Vxlan(
        namespace,
        vxlan_name(segment.vni),
        segment.vni,
        network.port,
        local,
        bridge,
        alias,
    )


def _port(state: State, network: Network, endpoint: Endpoint, mtu: int) -> Port | None:
    """Create a pair only for a Join that waits: only then does the engine move its container end."""
    segment = network.segment_of(endpoint.interfaces[0].ip)
    if segment is None:
        return None
    return Port(
        namespace_name(network.id),
        port_name(endpoint.id),
        bridge_name(segment.vni),
        _port_alias(endpoint),
        peer=container_name(endpoint.id),
        peer_mac=endpoint.mac,
        peer_mtu=mtu,
        create=endpoint.id in state.joining,
    )


def _port_alias(endpoint: Endpoint) -> str:
    addresses = " ".join(str(i.ip) for i in endpoint.interfaces)
    return f"{ALIAS_PREFIX}endpoint {endpoint.id} {addresses}"


def _shortcuts(network: Network, present: Collection[Endpoint]) -> Iterator[Shortcut]:
    """Yield the shortcut into each container; if two share a MAC, only the bridge knows which spoke last."""
    shared = Counter(e.mac for e in present)
    for endpoint in present:
        segment = network.segment_of(endpoint.interfaces[0].ip)
        if segment is not None and shared[endpoint.mac] == 1:
            device = vxlan_name(segment.vni)
            yield Shortcut(namespace_name(network.id), device, endpoint.mac, port_name(endpoint.id))


def _forwarding(state: State, network: Network, segment: Segment) -> Iterator[KernelObject]:
    namespace, device = namespace_name(network.id), vxlan_name(segment.vni)
    vteps: dict[int, Address] = {}
    for address, peer in _remote(state, network, segment):
        vteps[id(peer.vtep)] = peer.vtep  # hashing an address takes longer than all the rest
        yield FdbEntry(namespace, device, peer.mac, peer.vtep)
        yield Neighbour(namespace, device, address, peer.mac)
    for vtep in set(vteps.values()):
        yield FdbEntry(namespace, device, FLOOD_MAC, vtep)


def _remote(state: State, network: Network, segment: Segment) -> Iterator[tuple[Address, Peer]]:
    """Yield the segment's remote endpoints; what is on this host is never remote.

    An address that just moved here may still be known elsewhere. A VXLAN device speaks one
    address family, so a VTEP of the other one cannot be reached through it.
    """
    if state.host.vtep is None:
        return
    mine = [e for e in state.receivers() if e.network == network.id]
    local = {address for e in mine for address in e.addresses}
    macs = {e.mac for e in mine}
    version = state.host.vtep.version
    prefixes = [subnet.prefix for subnet in segment.subnets]
    for address, peer in state.peers.entries.get(network.id, {}).items():
        if peer.vtep.version != version or peer.mac in macs or address in local:
            continue
        for prefix in prefixes:
            if address in prefix:
                yield address, peer
                break
