"""FDB and neighbour rows as netlink messages: thousands of them, so packed by hand (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from driver.kernel.wire import APPEND, CREATE, REPLACE, Channel, Request, attribute, attributes
from driver.objects import FLOOD_MAC, FdbEntry, Neighbour
from driver.plan import Delete, Set
from driver.values import Address, Mac

_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_AF_BRIDGE = 7
_NDMSG = struct.Struct("=BxxxiHBB")
_HEAD = struct.Struct("=BxxxiHBBHH6sxxHH")  # ndmsg, link-layer address, head of the destination
_PERMANENT, _SELF = 0x80, 0x02
_DST, _LLADDR, _PORT, _VNI, _IFINDEX_OF_ROW = 1, 2, 6, 7, 8
_OVERRIDES = (_PORT, _VNI, _IFINDEX_OF_ROW)

Row = FdbEntry | Neighbour


def encode(op: Set | Delete, device: int) -> Request:
    """Return the message that does *op* on the VXLAN device with index *device*."""
    match op:
        case Set(FdbEntry() as row):
            # A replication row is one of many, and the kernel refuses to replace among them.
            how = APPEND if row.mac == FLOOD_MAC else REPLACE
            return Request(_NEWNEIGH, CREATE | how, _body(_AF_BRIDGE, _SELF, device, row.mac, row.vtep))
        case Set(Neighbour() as row):
            body = _body(_family(row.address), 0, device, row.mac, row.address)
            return Request(_NEWNEIGH, CREATE | REPLACE, body)
        case Delete(FdbEntry() as row):
            # Without a destination the kernel drops the whole row, whatever a hand made of it.
            vtep = row.vtep if row.mac == FLOOD_MAC and not row.vtep.is_unspecified else None
            return Request(_DELNEIGH, 0, _body(_AF_BRIDGE, _SELF, device, row.mac, vtep))
        case Delete(Neighbour() as row):
            return Request(_DELNEIGH, 0, _body(_family(row.address), 0, device, None, row.address))
        case _:
            raise TypeError(f"not a row: {op}")


def read(channel: Channel, namespace: str, vxlans: Mapping[int, str]) -> Iterator[Row]:
    """Yield the rows of the VXLAN devices *vxlans* (index to name); raise OSError."""
    for index, name in vxlans.items():
        yield from _fdb(
            channel.dump(_GETNEIGH, _NDMSG.pack(_AF_BRIDGE, index, 0, 0, 0)), namespace, index, name
        )
    if vxlans:
        for family in (socket.AF_INET, socket.AF_INET6):
            found = channel.dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0))
            yield from _neighbours(found, namespace, vxlans)


def _fdb(messages: Iterable[bytes], namespace: str, index: int, name: str) -> Iterator[FdbEntry]:
    for data in messages:
        family, device, state, flags, _ = _NDMSG.unpack_from(data)
        # The bridge keeps rows of its own for this port: they have "master" and no destination.
        if device != index or family != _AF_BRIDGE or not flags & _SELF or not state & _PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if _DST in row and _LLADDR in row:
            mac = Mac(row[_LLADDR].hex(":"))
            # Made by hand with a port or VNI of its own: unlike any wish, so it is replaced, or all
            # replication rows are dropped, to be made anew by the next pass.
            spoilt = any(override in row for override in _OVERRIDES)
            yield FdbEntry(namespace, name, mac, IPv4Address(0) if spoilt else _address(row[_DST]))


def _neighbours(messages: Iterable[bytes], namespace: str, vxlans: Mapping[int, str]) -> Iterator[Neighbour]:
    for data in messages:
        _, device, state, _, _ = _NDMSG.unpack_from(data)
        name = vxlans.get(device)
        if name is None or not state & _PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if _DST in row and _LLADDR in row:
            yield Neighbour(namespace, name, _address(row[_DST]), Mac(row[_LLADDR].hex(":")))


def _body(family: int, flags: int, device: int, mac: Mac | None, address: Address | None) -> bytes:
    if mac is not None and address is not None:
        packed = address.packed
        octets = bytes.fromhex(mac.replace(":", ""))
        head = _HEAD.pack(family, device, _PERMANENT, flags, 0, 10, _LLADDR, octets, len(packed) + 4, _DST)
        return head + packed
    body = _NDMSG.pack(family, device, _PERMANENT, flags, 0)
    if mac is not None:
        body += attribute(_LLADDR, bytes.fromhex(mac.replace(":", "")))
    return body + (attribute(_DST, address.packed) if address is not None else b"")


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@lru_cache(maxsize=4096)
def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
