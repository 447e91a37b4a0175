"""Tells containers who has an address now: ARP announcements (RFC 5227) and their like for IPv6 (RFC 4861).

A frame goes out of each port by itself, past the bridge: so no other host hears of it, and the bridge learns
nothing. The bridge's own neighbours, which it routes to, are changed by netlink.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from driver.checksum import internet_checksum
from driver.kernel import netns
from driver.kernel.netlink import links, rows
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Channel, Request
from driver.kernel.ops import Announcement, Owner
from driver.wish.values import octets

_ETHERNET: Final = struct.Struct("!6s6sH")
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_ADVERTISEMENT: Final = struct.Struct("!BBHI16sBB6s")
_ARP_REPLY: Final = 2
_NEIGHBOUR_ADVERTISEMENT: Final = 136
_ROUTER, _OVERRIDE = 1 << 31, 1 << 29
_TARGET_LINK_LAYER: Final = 2, 1
"""Option, and its length in eights of bytes (RFC 4861 section 4.6.1)."""
_HOPS: Final = 255
"""A neighbour's; others are not believed (RFC 4861 section 7.1.2)."""
_ALL_STATIONS: Final = b"\xff" * 6
_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")


class Announcer:
    """Tells the containers of one namespace. Its socket is opened when first needed.

    And kept: to close a packet socket the kernel waits until nobody can be using it, for 15 ms.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._socket: socket.socket | None = None

    def announce(self, what: Announcement) -> None:
        """Do as *what* says; raise OSError. A port that has gone meanwhile is left out."""
        bridge = links.link(self._channel, what.bridge)
        if bridge:
            self._channel.attempt(list(_corrections(bridge.index, what)))
        self._socket = self._socket or self._open()
        frames = [frame(owner) for owner in what.owners]
        for port in what.ports:
            with contextlib.suppress(OSError):
                for one in frames:
                    self._socket.sendto(one, (port, 0))

    def close(self) -> None:
        """Give back the descriptor."""
        if self._socket:
            self._socket.close()

    def _open(self) -> socket.socket:
        namespace = self._channel.namespace()
        try:
            # Of no protocol, so it receives nothing.
            return netns.inside(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        finally:
            os.close(namespace)


def frame(owner: Owner) -> bytes:
    """Return the frame that says whose an address is."""
    mac, address = octets(owner.mac), owner.address
    if isinstance(address, IPv4Address):
        return _ETHERNET.pack(_ALL_STATIONS, mac, nl.ETH_P_ARP) + _arp(mac, address)
    return _ETHERNET.pack(_ALL_NODES_MAC, mac, nl.ETH_P_IPV6) + _advertisement(
        mac, address, routes=owner.routes
    )


def _corrections(bridge: int, what: Announcement) -> Iterator[Request]:
    return (rows.corrected_neighbour(bridge, one.address, one.mac) for one in what.owners if not one.routes)


def _arp(mac: bytes, address: IPv4Address) -> bytes:
    """Make a reply about *address* to itself: the kernel takes it however young its own knowledge is.

    A reply also dies where a tunnel answers for others, should it ever come to one (drivers/net/vxlan).
    """
    return _ARP.pack(1, nl.ETH_P_IP, 6, 4, _ARP_REPLY, mac, address.packed, mac, address.packed)


def _advertisement(mac: bytes, address: IPv6Address, *, routes: bool) -> bytes:
    """Make an unsolicited advertisement that overrides what was known (RFC 4861 section 7.2.6)."""
    flags = _OVERRIDE | (_ROUTER if routes else 0)
    fields = flags, address.packed, *_TARGET_LINK_LAYER, mac
    size, ends = _ADVERTISEMENT.size, (address.packed, _ALL_NODES.packed)
    pseudo = b"".join(ends) + struct.pack("!II", size, socket.IPPROTO_ICMPV6)
    checksum = internet_checksum(pseudo + _ADVERTISEMENT.pack(_NEIGHBOUR_ADVERTISEMENT, 0, 0, *fields))
    head = _IPV6.pack(6 << 28, size, socket.IPPROTO_ICMPV6, _HOPS, *ends)
    return head + _ADVERTISEMENT.pack(_NEIGHBOUR_ADVERTISEMENT, 0, checksum, *fields)
