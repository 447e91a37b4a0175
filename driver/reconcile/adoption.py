"""What a new process takes over from the kernel, and which containers ended without a Leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from driver.kernel import Kernel
from driver.kernel.kinds import FLOOD_MAC, FdbEntry, Neighbour
from driver.kernel.names import container_name, namespace_name
from driver.kernel.objects import KernelState
from driver.reconcile.desired import vanished
from driver.wish.errors import unforeseen
from driver.wish.model import Peer, Phase
from driver.wish.peers import adopt
from driver.wish.state import State, with_doubt
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId
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
