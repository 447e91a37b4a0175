"""How netfilter's messages are packed: numbers in network order, names with a zero, nests marked."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

from driver.kernel.balancers import numbers as nf
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Request, attribute

HEAD = struct.Struct("!BBH")
"""Of every message (nfgenmsg): family, version, and for a batch its subsystem."""
IPV4 = HEAD.pack(socket.AF_INET, 0, 0)


def request(kind: int, flags: int, body: bytes) -> Request:
    """Make a message of nf_tables about a table for IPv4."""
    return Request(type_of(kind), flags, IPV4 + body)


def type_of(kind: int) -> int:
    """Return how netlink numbers a message of nf_tables."""
    return nf.NFNL_SUBSYS_NFTABLES << 8 | kind


def nest(kind: int, *parts: bytes) -> bytes:
    """Encode an attribute that consists of attributes."""
    return attribute(kind | nl.NLA_F_NESTED, b"".join(parts))


def listed(data: bytes) -> Iterator[bytes]:
    """Yield the values of attributes that all have the same number."""
    offset = 0
    while offset + 4 <= len(data):
        (length,) = struct.unpack_from("=H", data, offset)
        yield data[offset + 4 : offset + length]
        offset += max(4, length + 3 & ~3)


def number(value: int) -> bytes:
    """Encode 32 bits, with a sign or without."""
    return struct.pack("!I", value & 0xFFFFFFFF)


def text(value: str) -> bytes:
    """Encode a name."""
    return value.encode() + b"\0"


def named(kind: int, value: str) -> bytes:
    """Encode an attribute that is a name."""
    return attribute(kind, text(value))


def numbered(kind: int, value: int) -> bytes:
    """Encode an attribute that is a number."""
    return attribute(kind, number(value))


def read_text(value: bytes) -> str:
    """Decode a name."""
    return value.rstrip(b"\0").decode(errors="replace")


def holds(found: Mapping[int, bytes], wanted: Mapping[int, bytes]) -> bool:
    """Tell whether an object has all *wanted* attributes; it may have others."""
    return all(found.get(kind) == value for kind, value in wanted.items())
