"""The checksum of the Internet protocols, for packets that the kernel does not complete for us."""

from __future__ import annotations

import struct


def internet_checksum(data: bytes) -> int:
    """Return the checksum (RFC 1071) of an even number of bytes, up to 128 KiB."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
