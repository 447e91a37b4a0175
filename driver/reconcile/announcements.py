"""Whose addresses the containers of a network are to hear of, because they are another's now. Pure.

A container that asked for an address before it had an owner asks again a second later, and one that knew its
former owner goes on sending there, for up to forty seconds. So whoever was there before a change hears of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from driver.kernel.kinds import Bridge, BridgeAddress, Neighbour, Port, Vxlan
from driver.kernel.names import port_name
from driver.kernel.objects import KernelState
from driver.kernel.ops import Announcement, Op, Owner, Set
from driver.wish.model import Endpoint
from driver.wish.values import Address

_MOST_FRAMES: Final = 2000
"""At a time, for 20 ms. Who is left out learns of it later, as if there were no announcements."""


def announcements(
    ops: Iterable[Op], have: KernelState, want: KernelState, endpoints: Collection[Endpoint]
) -> Iterator[Announcement]:
    """Yield whom to tell of what after *ops* on a network that had *have*, with those *endpoints* here."""
    hearers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for port in have.values():
        if isinstance(port, Port):
            hearers[port.namespace, port.bridge].append(port.name)
    if not hearers:
        return
    owners: dict[tuple[str, str], list[Owner]] = defaultdict(list)
    for op in ops:
        for place, owner in _new_owners(op, want, endpoints):
            owners[place].append(owner)
    for place, found in owners.items():
        if ports := hearers[place]:
            yield Announcement(*place, tuple(ports), tuple(found[: _MOST_FRAMES // len(ports)]))


def _new_owners(
    op: Op, want: KernelState, endpoints: Collection[Endpoint]
) -> Iterator[tuple[tuple[str, str], Owner]]:
    """Yield who has got an address by *op*, and on which bridge."""
    match op:
        case Set(Neighbour() as row):
            tunnel = want.get(row.parent)
            if isinstance(tunnel, Vxlan):
                yield (row.namespace, tunnel.bridge), Owner(row.address, row.mac)
        case Set(Port() as port, None):
            for address in _addresses(port, endpoints):
                yield (port.namespace, port.bridge), Owner(address, port.peer_mac)
        case Set(Bridge() as bridge, Bridge()):
            for one in want.values():
                if isinstance(one, BridgeAddress) and one.device == bridge.name:
                    yield (bridge.namespace, bridge.name), Owner(one.interface.ip, bridge.mac, routes=True)


def _addresses(port: Port, endpoints: Collection[Endpoint]) -> Iterator[Address]:
    return (address for e in endpoints if port_name(e.id) == port.name for address in e.addresses)
