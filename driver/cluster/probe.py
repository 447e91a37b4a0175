"""Whether a host answers: ICMP echo (RFC 792, RFC 4443) to its VTEP, from the host's own namespace."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import Final

from driver.checksum import internet_checksum
from driver.wish.values import Address

log = logging.getLogger(__name__)

_TRIES: Final = 4
_PAUSE: Final = 0.5
"""Seconds between tries, and after the last one."""
_HEADER: Final = struct.Struct("!BBHHH")
_HEADERS: Final = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and ICMP before the payload."""
# IP_MTU_DISCOVER and IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE: with DF, whatever the kernel believes of the path.
_UNFRAGMENTED: Final = {4: (socket.IPPROTO_IP, 10, 3), 6: (socket.IPPROTO_IPV6, 23, 3)}
_ECHO: Final = {4: (8, 0), 6: (128, 129)}
"""Type of a request, type of the answer."""


def answering(vteps: Collection[Address], size: int = 0) -> set[Address]:
    """Return those of *vteps* that answer within two seconds; none where we are not allowed to ask.

    With *size*, they answer a packet of so many bytes, IP header and all, that no router may fragment.
    """
    found: set[Address] = set()
    for version in (4, 6):
        some = {vtep for vtep in vteps if vtep.version == version}
        try:
            found |= _ask(version, some, max(0, size - _HEADERS[version])) if some else set()
        except OSError as error:
            log.warning("cannot ask other hosts whether they answer: %s", error)
    return found


def _ask(version: int, vteps: set[Address], padding: int) -> set[Address]:
    """Ask several times: one lost packet must not cost a living host its rows."""
    found: set[Address] = set()
    identity = os.urandom(2)
    with _socket(version) as raw:
        for _ in range(_TRIES):
            for vtep in vteps - found:
                with contextlib.suppress(OSError):  # no route at the moment, or refused by a filter
                    raw.sendto(_request(version, identity) + bytes(padding), (str(vtep), 0))
            found |= vteps.intersection(_answers(raw, version, identity))
            if found == vteps:
                break
    return found


def _socket(version: int) -> socket.socket:
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    made.setsockopt(*_UNFRAGMENTED[version])
    return made


def _request(version: int, identity: bytes) -> bytes:
    kind, number = _ECHO[version][0], int.from_bytes(identity, "big")
    # The kernel fills in ICMPv6's checksum (RFC 3542 section 3.1).
    checksum = 0 if version == 6 else internet_checksum(_HEADER.pack(kind, 0, 0, number, 1))
    return _HEADER.pack(kind, 0, checksum, number, 1)


def _answers(raw: socket.socket, version: int, identity: bytes) -> Iterator[Address]:
    """Yield who answers within the pause."""
    waiter = select.poll()  # select() bears no descriptor above 1,023
    waiter.register(raw, select.POLLIN)
    end = time.monotonic() + _PAUSE
    while (left := end - time.monotonic()) > 0 and waiter.poll(1000 * left):
        data, (sender, *_) = raw.recvfrom(2048)
        start = (data[0] & 0x0F) * 4 if version == 4 else 0  # IPv4 comes with its header (raw(7))
        if data[start : start + 1] == bytes([_ECHO[version][1]]) and data[start + 4 : start + 6] == identity:
            yield ip_address(sender)
