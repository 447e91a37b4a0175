"""FDB and neighbour rows as netlink messages: thousands of them, so packed with struct (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from driver.kernel.netlink.socket import APPEND, CREATE, REPLACE, Channel, Request, attribute, attributes
from driver.wish.values import Address, Mac, octets

_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_AF_BRIDGE = 7
_NDMSG = struct.Struct("=BxxxiHBB")
_HEAD = struct.Struct("=BxxxiHBBHH6sxxHH")  # ndmsg, link-layer address, head of the destination
_PERMANENT, _SELF, _MASTER = 0x80, 0x02, 0x04
_DST, _LLADDR, _PORT, _VNI, _IFINDEX_OF_ROW = 1, 2, 6, 7, 8
_OVERRIDES = (_PORT, _VNI, _IFINDEX_OF_ROW)
_NO_MAC = struct.pack("=HH6s", 10, _LLADDR, bytes(6))

Place = tuple[int, int, bytes, bytes]
"""Which row: device, address family, MAC or address, and of replication rows the VTEP."""


class FdbRow(NamedTuple):
    """A permanent row of a VXLAN device's FDB."""

    device: int
    mac: Mac
    vtep: Address
    plain: bool
    """Whether it has no port, VNI or device of its own."""


def new_fdb(device: int, mac: Mac, vtep: Address) -> Request:
    """Add or replace the row of *mac* on the VXLAN device with index *device*."""
    return Request(_NEWNEIGH, CREATE | REPLACE, _body(_AF_BRIDGE, _SELF, device, mac, vtep))


def new_replication(device: int, mac: Mac, vtep: Address) -> Request:
    """Add a replication row: it is one of many, and the kernel refuses to replace among them."""
    return Request(_NEWNEIGH, CREATE | APPEND, _body(_AF_BRIDGE, _SELF, device, mac, vtep))


def deleted_fdb(device: int, mac: Mac, vtep: Address | None = None) -> Request:
    """Delete the row of *mac* to *vtep*; without one all rows of *mac*, whatever they have become."""
    return Request(_DELNEIGH, 0, _body(_AF_BRIDGE, _SELF, device, mac, vtep))


def new_neighbour(device: int, address: Address, mac: Mac) -> Request:
    """Add or replace what a VXLAN device answers for *address*."""
    return Request(_NEWNEIGH, CREATE | REPLACE, _body(_family(address), 0, device, mac, address))


def deleted_neighbour(device: int, address: Address) -> Request:
    """Have a VXLAN device answer for *address* no more."""
    return Request(_DELNEIGH, 0, _body(_family(address), 0, device, None, address))


def forgotten(device: int, mac: Mac) -> Request:
    """Have a bridge forget that *mac* is behind its port *device*."""
    return Request(_DELNEIGH, 0, _body(_AF_BRIDGE, _MASTER, device, mac, None))


def asked_fdb(device: int, mac: Mac) -> Request:
    """Ask for the row of *mac*. Of many replication rows the kernel would tell but the first."""
    return Request(
        _GETNEIGH, 0, _NDMSG.pack(_AF_BRIDGE, device, 0, _SELF, 0) + attribute(_LLADDR, octets(mac))
    )


def asked_neighbour(device: int, address: Address) -> Request:
    """Ask for the row of *address*."""
    head = _NDMSG.pack(_family(address), device, 0, 0, 0)
    return Request(_GETNEIGH, 0, head + attribute(_DST, address.packed))


def dump_fdb(channel: Channel, device: int) -> list[bytes]:
    """Return all messages about FDB rows of one device; raise OSError."""
    return channel.dump(_GETNEIGH, _NDMSG.pack(_AF_BRIDGE, device, 0, 0, 0))


def dump_neighbours(channel: Channel) -> list[bytes]:
    """Return all messages about neighbours in a namespace; raise OSError."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [data for family in families for data in channel.dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0))]


def is_replication(data: bytes) -> bool:
    """Tell, fast, whether a message may be about a replication row."""
    return _NO_MAC in data


def fdb_rows(messages: Iterable[bytes], index: int) -> Iterator[FdbRow]:
    """Yield the permanent rows of the VXLAN device *index* with a destination.

    The bridge keeps rows of its own for this port: they have "master" and no destination.
    """
    for data in messages:
        family, device, state, flags, _ = _NDMSG.unpack_from(data)
        if device != index or family != _AF_BRIDGE or not flags & _SELF or not state & _PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if _DST in row and _LLADDR in row:
            plain = not any(override in row for override in _OVERRIDES)
            yield FdbRow(device, Mac(row[_LLADDR].hex(":")), _vtep(row[_DST]), plain)


def neighbour_rows(messages: Iterable[bytes]) -> Iterator[tuple[int, Address, Mac]]:
    """Yield device, address and MAC of permanent rows."""
    for data in messages:
        _, device, state, _, _ = _NDMSG.unpack_from(data)
        row = attributes(data, _NDMSG.size) if state & _PERMANENT else {}
        if _DST in row and _LLADDR in row:
            yield device, _address(row[_DST]), Mac(row[_LLADDR].hex(":"))


def fdb_place(device: int, mac: Mac, vtep: Address | None) -> Place:
    """Tell where the row of *mac* is; of a replication row, *vtep* tells."""
    return device, _AF_BRIDGE, octets(mac), vtep.packed if vtep else b""


def neighbour_place(device: int, address: Address) -> Place:
    """Tell where the row of *address* is."""
    return device, _family(address), address.packed, b""


def place_in(data: bytes) -> Place:
    """Tell which row a message of the kernel's is about."""
    family, device, _, _, _ = _NDMSG.unpack_from(data)
    row = attributes(data, _NDMSG.size)
    to = row.get(_DST, b"")
    if family != _AF_BRIDGE:
        return device, family, to, b""
    mac = row.get(_LLADDR, b"")
    return device, family, mac, b"" if any(mac) else to


def _body(family: int, flags: int, device: int, mac: Mac | None, address: Address | None) -> bytes:
    if mac is not None and address is not None:
        packed = address.packed
        size = len(packed) + 4
        return _HEAD.pack(family, device, _PERMANENT, flags, 0, 10, _LLADDR, octets(mac), size, _DST) + packed
    body = _NDMSG.pack(family, device, _PERMANENT, flags, 0)
    if mac is not None:
        body += attribute(_LLADDR, octets(mac))
    return body + (attribute(_DST, address.packed) if address is not None else b"")


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@lru_cache(maxsize=4096)
def _vtep(packed: bytes) -> Address:
    return _address(packed)


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
