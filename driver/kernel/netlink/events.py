"""What the kernel tells of its own accord (rtnetlink(7), multicast groups), and which of it is news.

Containers must not be able to keep us busy. What their frames cause, rows that a bridge learns and
neighbours that it asks for, is dropped by a filter in the kernel (BPF as of bpf(4), on native-endian
fields). What a device says of itself is compared with what the last read showed.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping

from driver.kernel.netlink import links, rows
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.rows import Place

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_NEWROUTE, _NEWNEIGH, _DELNEIGH, _NEWNETCONF, _DELNETCONF = 24, 28, 29, 80, 81
_OF_ROWS = (_NEWNEIGH, _DELNEIGH)
_OF_FILTERS = (36, 37, 44, 45)
"""Queueing disciplines, which hold filters, and filters: new ones and gone ones."""
_LINK, _NEIGH, _TC = 1, 3, 4
_ADDRESS4, _ROUTE4, _ADDRESS6, _ROUTE6, _NETCONF4, _NETCONF6 = 5, 7, 9, 11, 24, 25
_SOL_NETLINK, _ADD_MEMBERSHIP, _ATTACH_FILTER = 270, 1, 26
_HEADER = struct.Struct("=IHHII")
_AF_BRIDGE, _SELF = 7, 0x02
_SO_RCVBUFFORCE, _RECEIVE_BUFFER = 33, 1 << 20
_CHUNK = 64 << 10

_BYTE, _HALF, _WORD = 0x30, 0x28, 0x20
_JUMP_EQUAL, _JUMP_SET, _RETURN = 0x15, 0x45, 0x06
_KIND, _NEIGH_FAMILY, _ROUTE_LENGTH, _NEIGH_DEVICE, _NEIGH_FLAGS = 4, 16, 17, 20, 26
_TAKE, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)

_Step = tuple[int, int, int, int]
"""One BPF instruction: code, jump if true, jump if false, operand."""


class Listener:
    """A socket that hears of changes in one namespace. Bound to it for ever, as all netlink sockets."""

    def __init__(self, raw: socket.socket, groups: Iterable[int], program: list[_Step]) -> None:
        self._socket = raw
        self._known: Mapping[int, Link] = {}
        self.has_kept_news = False
        """Whether there was news that a read has come across and not looked at."""
        raw.setblocking(False)
        with contextlib.suppress(OSError):  # without it a large change of our own is heard of once more
            raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._filter(program)
        raw.bind((0, 0))
        for group in groups:
            raw.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def close(self) -> None:
        """Give back the descriptor."""
        self._socket.close()

    def fileno(self) -> int:
        """For poll: readable when there may be news."""
        return self._socket.fileno()

    def forget(self) -> None:
        """Drop what has been told so far: all is about to be read."""
        for _ in self._messages():
            pass
        self.has_kept_news = False

    def heard(self) -> bool:
        """Take all that has been told; return whether any of it is news."""
        news = [message is None or self._is_news(*message) for message in self._messages()]
        kept, self.has_kept_news = self.has_kept_news, False
        return kept or any(news)

    def _is_news(self, kind: int, data: bytes) -> bool:
        if kind in (_NEWLINK, _DELLINK):
            return self._is_link_news(kind, data)
        return True

    def _is_link_news(self, kind: int, data: bytes) -> bool:
        index = links.index_of(data)
        return index in self._known and (kind == _DELLINK or links.parse(data) != self._known[index])

    def _messages(self) -> Iterator[tuple[int, bytes] | None]:
        """Yield kind and payload of each message; None when the kernel had to leave some out (ENOBUFS)."""
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                yield None
                continue
            size, kind, _, _, _ = _HEADER.unpack_from(data)
            yield kind, data[_HEADER.size : size]

    def _filter(self, program: list[_Step]) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )


class SpaceListener(Listener):
    """Hears of devices, addresses, forwarding, rows and filters of a namespace of ours."""

    def __init__(self, raw: socket.socket) -> None:
        groups = (_LINK, _NEIGH, _TC, _ADDRESS4, _ADDRESS6, _NETCONF4, _NETCONF6)
        super().__init__(raw, groups, _rows_of([]))
        self._tunnels: list[int] = []

    @classmethod
    def here(cls) -> SpaceListener:
        """Listen in the calling thread's namespace; raise OSError."""
        return cls(_socket())

    def expect(self, found: Mapping[int, Link]) -> None:
        """Take *found* as known; rows of VXLAN devices that are not in it are not heard of."""
        self._known = {index: link for index, link in found.items() if link.ours}
        tunnels = [index for index, link in self._known.items() if link.kind == "vxlan"]
        if tunnels != self._tunnels:
            self._tunnels = tunnels
            self._filter(_rows_of(tunnels))

    def known(self, name: str) -> int | None:
        """Return the index of a device of ours as the last read showed it; None when it showed none."""
        return next((index for index, link in self._known.items() if link.name == name), None)

    def forget_all_but_rows(self, places: Collection[Place]) -> None:
        """Drop what has been told so far, but of rows elsewhere than at *places*: those are not read now."""
        for message in self._messages():
            if message is None or (message[0] in _OF_ROWS and rows.place_in(message[1]) not in places):
                self.has_kept_news = True

    def _is_news(self, kind: int, data: bytes) -> bool:
        if kind in (_NEWADDR, _DELADDR):
            return links.address_index(data) in self._known
        if kind in (_NEWNETCONF, _DELNETCONF):
            index = links.netconf_index(data)
            return index < 0 or index in self._known
        if kind in _OF_FILTERS:
            return links.index_of(data) in self._tunnels
        return super()._is_news(kind, data)

    def _is_link_news(self, kind: int, data: bytes) -> bool:
        if links.is_bridge_ports(data):  # sent beside the device's own message, at each change of carrier
            return kind == _NEWLINK and links.index_of(data) in self._known and not links.port_is_sound(data)
        if super()._is_link_news(kind, data):
            return True
        return kind == _NEWLINK and links.index_of(data) not in self._known and links.parse(data).ours


class HostListener(Listener):
    """Hears of the underlay's device, of addresses and of default routes in the host's namespace."""

    def __init__(self, raw: socket.socket) -> None:
        super().__init__(raw, (_LINK, _ADDRESS4, _ADDRESS6, _ROUTE4, _ROUTE6), _DEFAULT_ROUTES)

    @classmethod
    def here(cls) -> HostListener:
        """Listen in the calling thread's namespace; raise OSError."""
        return cls(_socket())

    def expect(self, device: Link | None) -> None:
        """Take *device*, as it is now, for the underlay's."""
        self._known = {device.index: device} if device else {}


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _rows_of(devices: list[int]) -> list[_Step]:
    """Drop rows of other devices than *devices*, and those that a bridge keeps for them."""
    known = [(_JUMP_EQUAL, len(devices) - number, 0, _word(index)) for number, index in enumerate(devices)]
    return [
        (_HALF, 0, 0, _KIND),
        (_JUMP_EQUAL, 2, 0, _half(_NEWNEIGH)),
        (_JUMP_EQUAL, 1, 0, _half(_DELNEIGH)),
        _TAKE,
        (_WORD, 0, 0, _NEIGH_DEVICE),
        *known,
        _DROP,
        (_BYTE, 0, 0, _NEIGH_FAMILY),
        (_JUMP_EQUAL, 1, 0, _AF_BRIDGE),
        _TAKE,
        (_BYTE, 0, 0, _NEIGH_FLAGS),
        (_JUMP_SET, 1, 0, _SELF),
        _DROP,
        _TAKE,
    ]


def _half(value: int) -> int:
    # BPF loads are in network order, netlink's fields in the machine's.
    return int.from_bytes(struct.pack("=H", value), "big")


def _word(value: int) -> int:
    return int.from_bytes(struct.pack("=I", value), "big")


_DEFAULT_ROUTES: list[_Step] = [
    (_HALF, 0, 0, _KIND),
    (_JUMP_EQUAL, 2, 0, _half(_NEWROUTE)),
    (_JUMP_EQUAL, 1, 0, _half(_NEWROUTE + 1)),
    _TAKE,
    (_BYTE, 0, 0, _ROUTE_LENGTH),
    (_JUMP_EQUAL, 0, 1, 0),
    _TAKE,
    _DROP,
]
