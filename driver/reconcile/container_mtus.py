"""What MTU the running containers may have, when that of the underlay has sunk since they started. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from driver.reconcile.desired import container_mtu
from driver.wish.life import Life
from driver.wish.model import Network, Underlay
from driver.wish.state import State
from driver.wish.values import IPV6_MTU, Mac


class Limit(NamedTuple):
    """The most that the interface with *mac* in *sandbox* may have."""

    sandbox: str
    mac: Mac
    mtu: int


def limits(state: State) -> Iterator[Limit]:
    """Yield a limit for each container, except where the user has chosen the MTU."""
    for endpoint in state.endpoints.values() if state.mtu else ():
        network = state.networks.get(endpoint.network)
        if (
            network
            and endpoint.sandbox
            and state.life(endpoint.id) is Life.JOINED
            and not _is_chosen(network)
        ):
            mtu = container_mtu(network, state.host, Underlay("", state.mtu or 0))
            yield Limit(endpoint.sandbox, endpoint.mac, max(mtu, IPV6_MTU) if _has_ipv6(network) else mtu)


def _is_chosen(network: Network) -> bool:
    return network.mtu is not None or network.underlay_mtu is not None


def _has_ipv6(network: Network) -> bool:
    """Tell whether the kernel would take addresses away if the MTU were too small for IPv6."""
    return any(s.prefix.version == 6 for segment in network.segments for s in segment.subnets)
