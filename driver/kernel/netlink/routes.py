"""What the host's own routing says: which device leads to other hosts, which prefixes are in use."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from driver.kernel.netlink import links
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.socket import Channel, attribute, attributes
from driver.wish.errors import KernelError
from driver.wish.values import Address, Prefix

_RTMSG = struct.Struct("=BBBBBBBBI")
_TO_NO_HOST = (nl.RTN_BROADCAST, nl.RTN_ANYCAST, nl.RTN_MULTICAST)
_NEXT_HOP = struct.Struct("=HBBi")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

#: Every host has these; no network can collide with them.
_EVERYWHERE: tuple[Prefix, ...] = (
    IPv4Network("127.0.0.0/8"),
    IPv6Network("::1/128"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)


@dataclass(frozen=True, slots=True)
class _Route:
    prefix: Prefix
    device: int
    gateway: Address | None
    source: Address | None
    priority: int


@dataclass(frozen=True, slots=True)
class Way:
    """How packets leave for other hosts."""

    device: Link
    has_vtep: bool
    """Whether the VTEP address is on this host, on whatever device."""


def way(host: Channel, vtep: Address | None) -> Way | None:
    """Return the way to the other hosts, to which this one is known as *vtep*; None when there is none.

    The device that has the address is the one. Where none has it, or only the loopback device, which says
    nothing about the path, it is that of the route to the address, or of the default route. Raises
    KernelError.
    """
    try:
        devices = links.links(host)
        holder = _device_of(host, devices, vtep) if vtep else None
        found = holder
        if holder is None or holder.flags & nl.IFF_LOOPBACK:
            found = devices.get(_way_out(host, vtep, is_here=holder is not None), holder)
    except OSError as failure:
        raise _unreadable(failure) from failure
    return Way(found, vtep is None or holder is not None) if found else None


def default_source() -> Address | None:
    """Return the host's address towards the default route; None without one. Raises KernelError.

    "The host" is the calling thread's namespace, for `routes` as well: each opens a channel to ask.
    """
    try:
        with closing(Channel.here()) as host:
            route = _default(host)
            if route is None:
                return None
            return route.source or _source_towards(host, route) or _address_on(host, route)
    except OSError as failure:
        raise _unreadable(failure) from failure


def routes() -> frozenset[Prefix]:
    """Return the prefixes that the host has routes to or addresses in. Raises KernelError."""
    try:
        with closing(Channel.here()) as host:
            found = [route.prefix for route in _routes(host)]
    except OSError as failure:
        raise _unreadable(failure) from failure
    return frozenset(p for p in found if p.prefixlen and not any(_within(p, known) for known in _EVERYWHERE))


def _device_of(host: Channel, devices: dict[int, Link], vtep: Address) -> Link | None:
    holders = [a.index for a in links.addresses(host) if a.interface.ip == vtep]
    return next((devices[index] for index in holders if index in devices), None)


def _default(host: Channel, version: int = 4) -> _Route | None:
    """That of *version* first, then the lowest metric, as a new connection would go."""
    candidates = [route for route in _routes(host) if not route.prefix.prefixlen and route.device]
    return min(candidates, key=lambda route: (route.prefix.version != version, route.priority), default=None)


def _way_out(host: Channel, vtep: Address | None, *, is_here: bool) -> int:
    """Return the device of the route to *vtep*, or of the default route; 0 when there is none."""
    if vtep and not is_here:
        with suppress(OSError):  # ENETUNREACH, or what the route itself says
            return int.from_bytes(_ask_route(host, vtep).get(nl.RTA_OIF, b""), sys.byteorder)
    route = _default(host, vtep.version if vtep else 4)
    return route.device if route else 0


def _ask_route(host: Channel, target: Address, device: int = 0) -> dict[int, bytes]:
    """Ask how a packet would go; nothing when there is no answer. Raises OSError."""
    packed = target.packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    question = _RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(nl.RTA_DST, packed)
    if device:
        question += attribute(nl.RTA_OIF, struct.pack("=I", device))
    answer = host.ask(nl.RTM_GETROUTE, question)
    return attributes(answer, _RTMSG.size) if answer else {}


def _source_towards(host: Channel, route: _Route) -> Address | None:
    if route.gateway is None:
        return None
    source = _ask_route(host, route.gateway, route.device).get(nl.RTA_PREFSRC)
    found = ip_address(source) if source else None
    return None if found is None or found.is_link_local else found


def _address_on(host: Channel, route: _Route) -> Address | None:
    version = route.prefix.version
    found = (a.interface.ip for a in links.addresses(host) if a.index == route.device and a.is_global)
    return next((address for address in found if address.version == version), None)


def _routes(host: Channel) -> Iterator[_Route]:
    """Read all tables, without what leads to no other host and what is only cached (cloned)."""
    for family in _FAMILIES:
        for data in host.dump(nl.RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            of, length, _, _, _, _, _, kind, flags = _RTMSG.unpack_from(data)
            if of not in _FAMILIES or flags & nl.RTM_F_CLONED or kind in _TO_NO_HOST:
                continue
            values = attributes(data, _RTMSG.size)
            if nl.RTA_MULTIPATH in values:  # the first next hop speaks for all
                hop = values[nl.RTA_MULTIPATH]
                values[nl.RTA_OIF] = struct.pack("=i", _NEXT_HOP.unpack_from(hop)[3])
                values |= attributes(hop[: _NEXT_HOP.unpack_from(hop)[0]], _NEXT_HOP.size)
            yield _route(of, length, values)


def _route(family: int, length: int, values: dict[int, bytes]) -> _Route:
    target = values.get(nl.RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    gateway, source = values.get(nl.RTA_GATEWAY), values.get(nl.RTA_PREFSRC)
    return _Route(
        ip_network((target, length), strict=False),
        int.from_bytes(values.get(nl.RTA_OIF, b""), sys.byteorder),
        ip_address(gateway) if gateway else None,
        ip_address(source) if source else None,
        int.from_bytes(values.get(nl.RTA_PRIORITY, b""), sys.byteorder),
    )


def _within(prefix: Prefix, known: Prefix) -> bool:
    return prefix.version == known.version and prefix.prefixlen >= known.prefixlen and prefix[0] in known


def _unreadable(failure: OSError) -> KernelError:
    return KernelError(f"cannot read the host's routes: {failure.strerror}", failure.errno or 0)
