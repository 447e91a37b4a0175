"""What the kernel reports of its own accord (rtnetlink(7), multicast groups), and which of it is news.

Containers must not be able to keep us busy. What their frames cause, rows that a bridge learns and
neighbours that it asks for, is dropped in the kernel (`newsfilter`). What a device says about itself
is compared with what the last read showed.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping

from driver.kernel.assembler import CLASSIC
from driver.kernel.degraded import degraded
from driver.kernel.netlink import links, newsfilter, rows
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.rows import Place
from driver.kernel.netlink.socket import CHUNK, HEADER, prefer

_OF_ROWS = (nl.RTM_NEWNEIGH, nl.RTM_DELNEIGH)
_OF_ROUTES = (nl.RTM_NEWROUTE, nl.RTM_DELROUTE)
_OF_FILTERS = (nl.RTM_NEWQDISC, nl.RTM_DELQDISC, nl.RTM_NEWTFILTER, nl.RTM_DELTFILTER)
"""Queueing disciplines, which hold filters, and filters."""
_GROUPS_OF_SPACES = (
    nl.RTNLGRP_LINK,
    nl.RTNLGRP_NEIGH,
    nl.RTNLGRP_TC,
    nl.RTNLGRP_IPV4_IFADDR,
    nl.RTNLGRP_IPV6_IFADDR,
    nl.RTNLGRP_IPV4_NETCONF,
    nl.RTNLGRP_IPV6_NETCONF,
)
_GROUPS_OF_HOST = (
    nl.RTNLGRP_LINK,
    nl.RTNLGRP_IPV4_IFADDR,
    nl.RTNLGRP_IPV6_IFADDR,
    nl.RTNLGRP_IPV4_ROUTE,
    nl.RTNLGRP_IPV6_ROUTE,
)
_RECEIVE_BUFFER = 1 << 20


class Listener:
    """A socket that hears of changes in one namespace. Bound to it for ever, like all netlink sockets."""

    def __init__(self, raw: socket.socket, groups: Iterable[int], program: bytes) -> None:
        self._socket = raw
        self._known: Mapping[int, Link] = {}
        self.has_kept_news = False
        """Whether there was news that a read came across but did not cover."""
        raw.setblocking(False)
        otherwise = "after very large changes a network is read once more than necessary"
        prefer(raw, socket.SOL_SOCKET, nl.SO_RCVBUFFORCE, _RECEIVE_BUFFER, otherwise)
        self._filter(program)
        raw.bind((0, 0))
        for group in groups:
            raw.setsockopt(nl.SOL_NETLINK, nl.NETLINK_ADD_MEMBERSHIP, group)

    def close(self) -> None:
        """Give back the descriptor."""
        self._socket.close()

    def fileno(self) -> int:
        """For poll: readable when there may be news."""
        return self._socket.fileno()

    def forget(self) -> None:
        """Drop all news so far: everything is about to be read."""
        for _ in self._messages():
            pass
        self.has_kept_news = False

    def heard(self) -> bool:
        """Take all messages so far; return whether any of them is news."""
        news = [message is None or self._is_news(*message) for message in self._messages()]
        kept, self.has_kept_news = self.has_kept_news, False
        return kept or any(news)

    def _is_news(self, kind: int, data: bytes) -> bool:
        if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
            return self._is_link_news(kind, data)
        return True

    def _is_link_news(self, kind: int, data: bytes) -> bool:
        index = links.index_of(data)
        return index in self._known and (kind == nl.RTM_DELLINK or links.parse(data) != self._known[index])

    def _messages(self) -> Iterator[tuple[int, bytes] | None]:
        """Yield kind and payload of each message; None when the kernel had to leave some out (ENOBUFS)."""
        while True:
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                yield None
                continue
            size, kind, _, _, _ = HEADER.unpack_from(data)
            yield kind, data[HEADER.size : size]

    def _filter(self, program: bytes) -> None:
        """Have *program* drop what is no news; where the kernel refuses it, `_is_news` does the same."""
        code = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("@HP", len(program) // CLASSIC.size, ctypes.addressof(code))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, nl.SO_ATTACH_FILTER, described)
        except OSError as failure:
            degraded("every message of the kernel is looked at, which costs CPU time", failure)
            with contextlib.suppress(OSError):  # there was none
                self._socket.setsockopt(socket.SOL_SOCKET, nl.SO_DETACH_FILTER, 0)


class SpaceListener(Listener):
    """Hears of devices, addresses, forwarding, rows and filters of a namespace of ours."""

    def __init__(self, raw: socket.socket) -> None:
        super().__init__(raw, _GROUPS_OF_SPACES, newsfilter.rows_of([]))
        self._tunnels: list[int] = []

    @classmethod
    def here(cls) -> SpaceListener:
        """Listen in the calling thread's namespace; raise OSError."""
        return cls(_socket())

    def expect(self, found: Mapping[int, Link]) -> None:
        """Take *found* as known; rows of VXLAN devices that are not in it are not reported."""
        self._known = {index: link for index, link in found.items() if link.ours}
        tunnels = [index for index, link in self._known.items() if link.kind == "vxlan"]
        if tunnels != self._tunnels:
            self._tunnels = tunnels
            self._filter(newsfilter.rows_of(tunnels))

    def known(self, name: str) -> int | None:
        """Return the index of a device of ours as the last read showed it; None when it showed none."""
        return next((index for index, link in self._known.items() if link.name == name), None)

    def forget_all_but_rows(self, places: Collection[Place]) -> None:
        """Drop all news so far, except about rows elsewhere than at *places*: those are not read now."""
        for message in self._messages():
            self.has_kept_news |= message is None or self._is_news_of_another_row(*message, places)

    def _is_news_of_another_row(self, kind: int, data: bytes, places: Collection[rows.Place]) -> bool:
        return kind in _OF_ROWS and self._is_news(kind, data) and rows.place_in(data) not in places

    def _is_news(self, kind: int, data: bytes) -> bool:
        if kind in _OF_ROWS:
            return newsfilter.is_row_of(data, self._tunnels)
        if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
            return links.address_index(data) in self._known
        if kind in (nl.RTM_NEWNETCONF, nl.RTM_DELNETCONF):
            index = links.netconf_index(data)
            return index < 0 or index in self._known
        if kind in _OF_FILTERS:
            return links.index_of(data) in self._tunnels
        return super()._is_news(kind, data)

    def _is_link_news(self, kind: int, data: bytes) -> bool:
        """Ignore a bridge's message about a sound port: it comes whenever a container starts or stops."""
        if links.is_bridge_ports(data):  # sent with the device's own message, at each change of carrier
            return (
                kind == nl.RTM_NEWLINK
                and links.index_of(data) in self._known
                and not links.port_is_sound(data)
            )
        if super()._is_link_news(kind, data):
            return True
        return kind == nl.RTM_NEWLINK and links.index_of(data) not in self._known and links.parse(data).ours


class HostListener(Listener):
    """Hears of the underlay's device, of addresses and of default routes in the host's namespace."""

    def __init__(self, raw: socket.socket) -> None:
        super().__init__(raw, _GROUPS_OF_HOST, newsfilter.default_routes())

    @classmethod
    def here(cls) -> HostListener:
        """Listen in the calling thread's namespace; raise OSError."""
        return cls(_socket())

    def expect(self, device: Link | None) -> None:
        """Take *device*, as it is now, for the underlay's."""
        self._known = {device.index: device} if device else {}

    def _is_news(self, kind: int, data: bytes) -> bool:
        if kind in _OF_ROUTES:
            return newsfilter.is_default_route(data)
        return super()._is_news(kind, data)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
