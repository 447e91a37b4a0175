"""FDB and neighbour rows as netlink messages: thousands of them, so packed by hand (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

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
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)
from driver.kernel.netlink.socket import Channel, Request, attribute, attributes
from driver.kernel.objects import FLOOD_MAC, FdbEntry, Neighbour, Row
from driver.kernel.ops import Delete, Set
from driver.wish.values import Address, Mac, octets

_NDMSG = struct.Struct("=BxxxiHBB")
_HEAD = struct.Struct("=BxxxiHBBHH6sxxHH")  # ndmsg, link-layer address, head of the destination
_OVERRIDES = (NDA_PORT, NDA_VNI, NDA_IFINDEX)
_NO_MAC = struct.pack("=HH6s", 10, NDA_LLADDR, bytes(6))

Place = tuple[int, int, bytes, bytes]
"""Which row: device, address family, MAC or address, and of replication rows the VTEP."""


def encode(op: Set | Delete, device: int) -> Request:
    """Return the message that does *op* on the VXLAN device with index *device*."""
    match op:
        case Set(FdbEntry() as row):
            # A replication row is one of many, and the kernel refuses to replace among them.
            how = NLM_F_APPEND if row.mac == FLOOD_MAC else NLM_F_REPLACE
            body = _body(AF_BRIDGE, NTF_SELF, device, row.mac, row.vtep)
            return Request(RTM_NEWNEIGH, NLM_F_CREATE | how, body)
        case Set(Neighbour() as row):
            body = _body(_family(row.address), 0, device, row.mac, row.address)
            return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
        case Delete(FdbEntry() as row):
            # Without a destination the kernel drops the whole row, whatever somebody made of it.
            vtep = row.vtep if row.mac == FLOOD_MAC and not row.vtep.is_unspecified else None
            return Request(RTM_DELNEIGH, 0, _body(AF_BRIDGE, NTF_SELF, device, row.mac, vtep))
        case Delete(Neighbour() as row):
            return Request(RTM_DELNEIGH, 0, _body(_family(row.address), 0, device, None, row.address))
        case _:
            raise TypeError(f"not a row: {op}")


def forgotten(device: int, mac: Mac) -> Request:
    """Return the message by which a bridge forgets that *mac* is behind its port *device*."""
    return Request(RTM_DELNEIGH, 0, _body(AF_BRIDGE, NTF_MASTER, device, mac, None))


def dump_rows(channel: Channel, namespace: str, vxlans: Mapping[int, str]) -> Iterator[Row]:
    """Yield the rows of the VXLAN devices *vxlans* (index to name); raise OSError."""
    for index, name in vxlans.items():
        yield from _fdb(
            channel.dump(RTM_GETNEIGH, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0)), namespace, index, name
        )
    if vxlans:
        for family in (socket.AF_INET, socket.AF_INET6):
            found = channel.dump(RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0))
            yield from _neighbours(found, namespace, vxlans)


def find_rows(
    channel: Channel, namespace: str, vxlans: Mapping[int, str], wanted: Collection[Row]
) -> Iterator[Row]:
    """Yield what is at the places of *wanted*, whatever its value; raise OSError."""
    indices = {name: index for index, name in vxlans.items()}
    there = [row for row in wanted if row.device in indices]
    single = [row for row in there if not _is_replication(row)]
    questions = [Request(RTM_GETNEIGH, 0, _question(row, indices[row.device])) for row in single]
    answers = zip(single, channel.ask_all(questions), strict=True)
    for row, answer in answers:
        if answer is not None and isinstance(row, FdbEntry):
            yield from _fdb([answer], namespace, indices[row.device], row.device)
        elif answer is not None:
            yield from _neighbours([answer], namespace, vxlans)
    # Of the many rows of the one MAC the kernel would tell but the first.
    keys = {row.key for row in there if _is_replication(row)}
    for device in {key.name for key in keys}:
        found = channel.dump(RTM_GETNEIGH, _NDMSG.pack(AF_BRIDGE, indices[device], 0, 0, 0))
        likely = (data for data in found if _NO_MAC in data)
        for row in _fdb(likely, namespace, indices[device], device):
            if row.key in keys:
                yield row


def place_of(row: Row, device: int) -> Place:
    """Tell where *row* is, on the VXLAN device with index *device*."""
    if isinstance(row, Neighbour):
        return device, _family(row.address), row.address.packed, b""
    return device, AF_BRIDGE, octets(row.mac), row.vtep.packed if _is_replication(row) else b""


def place_in(data: bytes) -> Place:
    """Tell which row a message of the kernel's is about."""
    family, device, _, _, _ = _NDMSG.unpack_from(data)
    row = attributes(data, _NDMSG.size)
    to = row.get(NDA_DST, b"")
    if family != AF_BRIDGE:
        return device, family, to, b""
    mac = row.get(NDA_LLADDR, b"")
    return device, family, mac, b"" if any(mac) else to


def _is_replication(row: Row) -> bool:
    return isinstance(row, FdbEntry) and row.mac == FLOOD_MAC


def _question(row: Row, device: int) -> bytes:
    if isinstance(row, Neighbour):
        return _NDMSG.pack(_family(row.address), device, 0, 0, 0) + attribute(NDA_DST, row.address.packed)
    return _NDMSG.pack(AF_BRIDGE, device, 0, NTF_SELF, 0) + attribute(NDA_LLADDR, octets(row.mac))


def _fdb(messages: Iterable[bytes], namespace: str, index: int, name: str) -> Iterator[FdbEntry]:
    for data in messages:
        family, device, state, flags, _ = _NDMSG.unpack_from(data)
        # The bridge keeps rows of its own for this port: they have "master" and no destination.
        if device != index or family != AF_BRIDGE or not flags & NTF_SELF or not state & NUD_PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if NDA_DST in row and NDA_LLADDR in row:
            mac = Mac(row[NDA_LLADDR].hex(":"))
            # Made by hand with a port or VNI of its own: unlike any wish, so it is replaced, or all
            # replication rows are dropped, to be made anew by the next pass.
            spoilt = any(override in row for override in _OVERRIDES)
            yield FdbEntry(namespace, name, mac, IPv4Address(0) if spoilt else _vtep(row[NDA_DST]))


def _neighbours(messages: Iterable[bytes], namespace: str, vxlans: Mapping[int, str]) -> Iterator[Neighbour]:
    for data in messages:
        _, device, state, _, _ = _NDMSG.unpack_from(data)
        name = vxlans.get(device)
        if name is None or not state & NUD_PERMANENT:
            continue
        row = attributes(data, _NDMSG.size)
        if NDA_DST in row and NDA_LLADDR in row:
            yield Neighbour(namespace, name, _address(row[NDA_DST]), Mac(row[NDA_LLADDR].hex(":")))


def _body(family: int, flags: int, device: int, mac: Mac | None, address: Address | None) -> bytes:
    if mac is not None and address is not None:
        packed = address.packed
        size = len(packed) + 4
        head = _HEAD.pack(family, device, NUD_PERMANENT, flags, 0, 10, NDA_LLADDR, octets(mac), size, NDA_DST)
        return head + packed
    body = _NDMSG.pack(family, device, NUD_PERMANENT, flags, 0)
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
