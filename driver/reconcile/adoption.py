"""What a new process takes over from the kernel, and which containers ended without a Leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

from driver.kernel import Kernel
from driver.kernel.kinds import FLOOD_MAC, Bridge, BridgeAddress, FdbEntry, Neighbour, Port, Shortcut, Vxlan
from driver.kernel.names import ALIAS_MAX, ALIAS_PREFIX, container_name, namespace_name, port_of
from driver.kernel.objects import KernelState
from driver.reconcile.desired import vanished
from driver.wish.errors import unforeseen
from driver.wish.model import Peer, Phase
from driver.wish.peers import adopt
from driver.wish.remains import Remains
from driver.wish.state import State, with_doubt
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId, Prefix, Vni
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

_HANDOVER = 1.0
"""Seconds after which the engine has surely moved a container end into its container."""


def adopt_kernel(wish: Wish, kernel: Kernel, clock: Callable[[], float]) -> None:
    """Take the rows in the kernel for what the others had when the former process ended.

    Endpoints without a container ended after it, or with the whole host.
    """
    ends = _given_back(wish.state, kernel, clock)
    for network in wish.state.networks:
        try:
            _adopt_network(wish, kernel, network, ends, clock())
        except Exception as error:  # trouble with one network must not stop the others
            trace = unforeseen(error)
            log.warning("network %s: cannot adopt what is in the kernel: %s", network, error, exc_info=trace)


def _adopt_network(wish: Wish, kernel: Kernel, network: NetworkId, ends: Collection[str], now: float) -> None:
    have = kernel.read_place(namespace_name(network))
    if rows := _remote_rows(have):
        wish.change(partial(_adopted, network=network, rows=rows, now=now))
    withdraw(wish, network, vanished(wish.state, network, have, ends))


def withdraw(wish: Wish, network: NetworkId, gone: Collection[EndpointId]) -> None:
    """Stop announcing the endpoints that no container has."""
    for endpoint in gone:
        log.warning("network %s: endpoint %s has lost its container: withdrawn", network, endpoint)
    if gone:
        wish.change(lambda state: with_doubt(state, gone))


def _given_back(state: State, kernel: Kernel, clock: Callable[[], float]) -> Collection[str]:
    """Return the container ends that are in the host's namespace and stay there.

    The engine may be about to move one for a Join that the former process has just answered.
    """
    joined = {container_name(e.id) for e in state.endpoints.values() if e.phase is Phase.JOINED}
    end = clock() + _HANDOVER
    try:
        while (ends := joined.intersection(kernel.container_ends())) and clock() < end:
            time.sleep(_HANDOVER / 20)
    except Exception as error:
        log.warning(
            "cannot tell which containers have ended in the meantime: %s", error, exc_info=unforeseen(error)
        )
        return ()
    return ends


def _adopted(state: State, *, network: NetworkId, rows: Mapping[Address, Peer], now: float) -> State:
    return replace(state, peers=adopt(state.peers, network, rows, now))


def _remote_rows(have: KernelState) -> dict[Address, Peer]:
    vteps: dict[tuple[str, Mac], Address] = {
        (o.device, o.mac): o.vtep for o in have.values() if isinstance(o, FdbEntry) and o.mac != FLOOD_MAC
    }
    neighbours = [o for o in have.values() if isinstance(o, Neighbour) and (o.device, o.mac) in vteps]
    return {n.address: Peer(n.mac, vteps[n.device, n.mac], NodeId("")) for n in neighbours}


def find_remains(kernel: Kernel, known: Collection[NetworkId]) -> Mapping[NetworkId, Remains]:
    """Return what the kernel has of networks that are not *known*, by the marks on our devices."""
    found: dict[NetworkId, Remains] = {}
    for name in set(kernel.namespaces()) - set(map(namespace_name, known)):
        try:
            remains = read_remains(kernel.read_place(name), kernel.container_ends())
        except Exception as error:  # trouble with one network must not stop the others
            log.warning("namespace %s cannot be read: %s", name, error, exc_info=unforeseen(error))
            continue
        if remains is not None and namespace_name(remains.network) == name:
            found[remains.network] = remains
    return found


def read_remains(have: KernelState, ends: Collection[str]) -> Remains | None:
    """Read a network from its kernel objects; *ends* are the container ends that no container has.

    None when none of them says which network it is of.
    """
    bridges = [obj for obj in have.values() if isinstance(obj, Bridge)]
    ids = [words[1] for bridge in bridges if (words := _words(bridge.alias))[:1] == ["network"] and words[1:]]
    if not ids:
        return None
    tunnels = {obj.bridge: obj for obj in have.values() if isinstance(obj, Vxlan)}
    unused = {port_of(end) for end in ends}
    ports = [obj for obj in have.values() if isinstance(obj, Port) and obj.name not in unused]
    marks = {port.name: words[1:] for port in ports if (words := _words(port.alias))[:1] == ["endpoint"]}
    macs = {obj.port: obj.mac for obj in have.values() if isinstance(obj, Shortcut)}
    addresses = (obj.interface for obj in have.values() if isinstance(obj, BridgeAddress))
    return Remains(
        NetworkId(ids[0]),
        port=next((tunnel.port for tunnel in tunnels.values()), 0),
        vtep=next((tunnel.local for tunnel in tunnels.values()), None),
        vnis=dict(_vnis(bridges, tunnels)),
        gateways={interface.network: interface.ip for interface in addresses},
        endpoints={EndpointId(mark[0]): tuple(map(ip_address, mark[1:])) for mark in marks.values()},
        macs={EndpointId(mark[0]): macs[port] for port, mark in marks.items() if port in macs},
        rows=_remote_rows(have),
    )


def _words(alias: str) -> list[str]:
    """Split a mark of ours; the kernel may have cut its last word."""
    words = alias.removeprefix(ALIAS_PREFIX).split()
    return words[:-1] if len(alias.encode()) == ALIAS_MAX else words


def _vnis(bridges: Collection[Bridge], tunnels: Mapping[str, Vxlan]) -> Iterator[tuple[Prefix, Vni]]:
    for bridge in bridges:
        if bridge.name in tunnels:
            for word in _words(bridge.alias)[2:]:
                yield ip_network(word), tunnels[bridge.name].vni
