"""FDB and neighbour rows as netlink messages: thousands of them, so packed with struct (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from driver.kernel.netlink.numbers import (
    AF_BRIDGE,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_PORT,
    NDA_VNI,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NTF_MASTER,
    NTF_SELF,
    NUD_PERMANENT,
    NUD_STALE,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)
from driver.kernel.netlink.socket import Channel, Request, attribute, attributes
from driver.wish.values import Address, Mac, octets

_NDMSG = struct.Struct("=BxxxiHBB")
_HEAD = struct.Struct("=BxxxiHBBHH6sxxHH")  # ndmsg, link-layer address, head of the destination
_OVERRIDES = (NDA_PORT, NDA_VNI, NDA_IFINDEX)
_NO_MAC = struct.pack("=HH6s", 10, NDA_LLADDR, bytes(6))

Place = tuple[int, int, bytes, bytes]
"""Which row: device, address family, MAC or address, and for replication rows the VTEP."""


class FdbRow(NamedTuple):
    """A permanent row of a VXLAN device's FDB."""

    device: int
    mac: Mac
    vtep: Address
    plain: bool
    """Whether it is free of a port, VNI or device of its own."""


def new_fdb(device: int, mac: Mac, vtep: Address) -> Request:
    """Add or replace the row of *mac* on the VXLAN device with index *device*."""
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _body(AF_BRIDGE, NTF_SELF, device, mac, vtep))


def new_replication(device: int, mac: Mac, vtep: Address) -> Request:
    """Add a replication row: it is one of many, and the kernel refuses to replace among them."""
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_APPEND, _body(AF_BRIDGE, NTF_SELF, device, mac, vtep))


def deleted_fdb(device: int, mac: Mac, vtep: Address | None = None) -> Request:
    """Delete the row of *mac* to *vtep*; without one all rows of *mac*, whatever their values are."""
    return Request(RTM_DELNEIGH, 0, _body(AF_BRIDGE, NTF_SELF, device, mac, vtep))


def new_neighbour(device: int, address: Address, mac: Mac) -> Request:
    """Add or replace what a VXLAN device answers for *address*."""
    return Request(
        RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _body(_family(address), 0, device, mac, address)
    )


def deleted_neighbour(device: int, address: Address) -> Request:
    """Make a VXLAN device stop answering for *address*."""
    return Request(RTM_DELNEIGH, 0, _body(_family(address), 0, device, None, address))


def corrected_neighbour(device: int, address: Address, mac: Mac) -> Request:
    """Have a device that knows a neighbour, or waits for it, take this MAC for it until it asks again."""
    return Request(
        RTM_NEWNEIGH, NLM_F_REPLACE, _body(_family(address), 0, device, mac, address, state=NUD_STALE)
    )


def forgotten(device: int, mac: Mac) -> Request:
    """Make a bridge forget that *mac* is behind its port *device*."""
    return Request(RTM_DELNEIGH, 0, _body(AF_BRIDGE, NTF_MASTER, device, mac, None))


def asked_fdb(device: int, mac: Mac) -> Request:
    """Ask for the row of *mac*. Of many replication rows the kernel would report only the first."""
    return Request(
        RTM_GETNEIGH, 0, _NDMSG.pack(AF_BRIDGE, device, 0, NTF_SELF, 0) + attribute(NDA_LLADDR, octets(mac))
    )


def asked_neighbour(device: int, address: Address) -> Request:
    """Ask for the row of *address*."""
    head = _NDMSG.pack(_family(address), device, 0, 0, 0)
    return Request(RTM_GETNEIGH, 0, head + attribute(NDA_DST, address.packed))


def dump_fdb(channel: Channel, device: int) -> list[bytes]:
    """Return all messages about FDB rows of one device; raise OSError."""
    return channel.dump(RTM_GETNEIGH, _NDMSG.pack(AF_BRIDGE, device, 0, 0, 0))


def dump_neighbours(channel: Channel) -> list[bytes]:
    """Return all messages about neighbours in a namespace; raise OSError."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        data for family in families for data in channel.dump(RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0))
    ]


def is_replication(data: bytes) -> bool:
    """Tell quickly whether a message may be about a replication row."""
    return _NO_MAC in data


def fdb_rows(messages: Iterable[bytes], index: int) -> Iterator[FdbRow]:
    """Yield the permanent rows of the VXLAN device *index* with a destination.

    The bridge keeps rows of its own for this port: they have "master" and no destination.
    """
    for data in messages:
        family, device, state, flags, _ = _NDMSG.unpack_from(data)
        if device != index or family != AF_BRIDGE or not flags & NTF_SELF or not state & NUD_PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if NDA_DST in row and NDA_LLADDR in row:
            plain = not any(override in row for override in _OVERRIDES)
            yield FdbRow(device, Mac(row[NDA_LLADDR].hex(":")), _vtep(row[NDA_DST]), plain)


def neighbour_rows(messages: Iterable[bytes]) -> Iterator[tuple[int, Address, Mac]]:
    """Yield device, address and MAC of permanent rows."""
    for data in messages:
        _, device, state, _, _ = _NDMSG.unpack_from(data)
        row = attributes(data, _NDMSG.size) if state & NUD_PERMANENT else {}
        if NDA_DST in row and NDA_LLADDR in row:
            yield device, _address(row[NDA_DST]), Mac(row[NDA_LLADDR].hex(":"))


def fdb_place(device: int, mac: Mac, vtep: Address | None) -> Place:
    """Tell where the row of *mac* is; for a replication row, *vtep* decides."""
    return device, AF_BRIDGE, octets(mac), vtep.packed if vtep else b""


def neighbour_place(device: int, address: Address) -> Place:
    """Tell where the row of *address* is."""
    return device, _family(address), address.packed, b""


def place_in(data: bytes) -> Place:
    """Tell which row a message of the kernel's is about."""
    family, device, _, _, _ = _NDMSG.unpack_from(data)
    row = attributes(data, _NDMSG.size)
    to = row.get(NDA_DST, b"")
    if family != AF_BRIDGE:
        return device, family, to, b""
    mac = row.get(NDA_LLADDR, b"")
    return device, family, mac, b"" if any(mac) else to


def _body(
    family: int,
    flags: int,
    device: int,
    mac: Mac | None,
    address: Address | None,
    *,
    state: int = NUD_PERMANENT,
) -> bytes:
    """Pack the usual row in one go: a host may have tens of thousands of them."""
    if mac is not None and address is not None:
        packed = address.packed
        size = len(packed) + 4
        return (
            _HEAD.pack(family, device, state, flags, 0, 10, NDA_LLADDR, octets(mac), size, NDA_DST) + packed
        )
    body = _NDMSG.pack(family, device, state, flags, 0)
    if mac is not None:
        body += attribute(NDA_LLADDR, octets(mac))
    return body + (attribute(NDA_DST, address.packed) if address is not None else b"")


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@lru_cache(maxsize=4096)
def _vtep(packed: bytes) -> Address:
    return _address(packed)


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
