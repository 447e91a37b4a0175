"""Forgets where connections go that can go elsewhere now (linux/netfilter/nfnetlink_conntrack.h).

A TCP connection ends with its backend, and the next one goes elsewhere. But datagrams from the same port to
the same address are one connection for the kernel, for as long as they come: they would go to the dead for
ever, or nowhere if they began before the container had its table. So would the repeated SYN of a connection
that is about to be made.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping
from typing import Final

from driver.kernel.netlink.socket import Channel, Request, attribute, attributes
from driver.wish.values import Address

_GET, _DELETE, _GET_STATISTICS = 0x101, 0x102, 0x105
_IP = struct.pack("!BBH", socket.AF_INET, 0, 0)
_ORIGINAL, _REPLY, _PROTOINFO, _ID = 1, 2, 4, 12
_ADDRESSES, _PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NESTED: Final = 0x8000
_SYN_SENT: Final = 1
_FEW: Final = 8

Gone = Mapping[Address, Collection[Address]]
"""By virtual address, where connections lead that are to go elsewhere: to itself, before it was served."""


def forget(channel: Channel, gone: Gone) -> int:
    """Drop what leads to those *gone*, but established TCP connections; return how many. Raises OSError."""
    if _count(channel) == 0:
        return 0  # the kernel would look through the connections of all namespaces: ten milliseconds
    wanted = {(vip.packed, backend.packed) for vip, backends in gone.items() for backend in backends}
    few = [vip.packed for vip in gone] if len(gone) <= _FEW else [b""]
    entries = [
        attributes(data, len(_IP))
        for data in channel.dump(_GET, _IP)
        if any(vip in data for vip in few)  # spares taking thousands of others apart
    ]
    doomed = [entry for entry in entries if _ends(entry) in wanted and not _is_established(entry)]
    channel.attempt([Request(_DELETE, 0, _named(entry)) for entry in doomed])
    return len(doomed)


def _count(channel: Channel) -> int:
    """Return how many connections the namespace has."""
    answer = channel.ask(_GET_STATISTICS, _IP)
    return int.from_bytes(attributes(answer, len(_IP)).get(1, b""), "big") if answer else 0


def _ends(entry: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Return where the client sent to, and who answers."""
    there = attributes(attributes(entry[_ORIGINAL])[_ADDRESSES])
    back = attributes(attributes(entry[_REPLY])[_ADDRESSES])
    return there.get(_DESTINATION, b""), back.get(_SOURCE, b"")


def _is_established(entry: Mapping[int, bytes]) -> bool:
    protocol = attributes(attributes(entry[_ORIGINAL])[_PROTOCOL])[1]
    if protocol != bytes([socket.IPPROTO_TCP]):
        return False
    info = attributes(attributes(entry.get(_PROTOINFO, b"")).get(1, b""))
    return info.get(1) != bytes([_SYN_SENT])


def _named(entry: Mapping[int, bytes]) -> bytes:
    return _IP + attribute(_ORIGINAL | _NESTED, entry[_ORIGINAL]) + attribute(_ID, entry[_ID])
