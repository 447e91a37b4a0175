"""Netlink on the wire: one socket, its requests and acknowledgements, its dumps (man 7 netlink).

pyroute2's own socket is not used. It brings an asyncio loop (four descriptors, 1.3 ms) for every
namespace, belongs to the thread that made it, and takes 110 to 280 microseconds a row.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from driver.kernel.degraded import degraded
from driver.kernel.netlink import numbers as nl

HEADER = struct.Struct("=IHHII")
"""Of every message (nlmsghdr): length with itself, type, flags, sequence, port."""
CHUNK = 64 << 10
"""Bytes to read at a time; the kernel puts at most 32 KiB into one answer."""

_ATTRIBUTE = struct.Struct("=HH")
_BATCH = 200
_DUMP_TRIES = 10
_PATIENCE = struct.pack("@ll", 10, 0)
_ERROR_SIZE = 4 + HEADER.size
"""Of nlmsgerr: the number, and the header of the request that failed."""
_OPTIONS = (
    (socket.SOL_SOCKET, nl.SO_RCVBUFFORCE, 4 << 20, "the outcome of very large changes may be lost"),
    (socket.SOL_SOCKET, nl.SO_SNDBUFFORCE, 16 << 20, "very large changes may fail"),
    (nl.SOL_NETLINK, nl.NETLINK_CAP_ACK, 1, "the kernel's refusals come without an explanation"),
    (nl.SOL_NETLINK, nl.NETLINK_EXT_ACK, 1, "the kernel's refusals come without an explanation"),
    (nl.SOL_NETLINK, nl.NETLINK_GET_STRICT_CHK, 1, "the state of networks is read more slowly"),
)
"""Each with what its absence costs."""


class Request(NamedTuple):
    """One message to the kernel, without its header."""

    kind: int
    flags: int
    body: bytes


class Refused(OSError):
    """The kernel said no; *strerror* is its own sentence where it gave one."""


class Channel:
    """A netlink route socket. It belongs for ever to the namespace in which it was made."""

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._sequence = 0
        self._buffer = memoryview(bytearray(CHUNK))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        for level, option, value, otherwise in _OPTIONS:
            prefer(raw, level, option, value, otherwise)

    @classmethod
    def here(cls, protocol: int = socket.NETLINK_ROUTE) -> Channel:
        """Open a channel into the calling thread's namespace; raise OSError when there is none left."""
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        raw.bind((0, 0))
        return cls(raw)

    def close(self) -> None:
        """Give back the descriptor."""
        self._socket.close()

    def namespace(self) -> int:
        """Open the namespace that this channel leads to; the caller closes it. Raises OSError."""
        return fcntl.ioctl(self._socket, nl.SIOCGSKNS)

    def do(self, *requests: Request) -> None:
        """Carry out *requests* in order; raise Refused for the first that failed."""
        for refusal in self.attempt(requests):
            if refusal:
                raise refusal

    def attempt(self, requests: Sequence[Request]) -> list[Refused | None]:
        """Carry out *requests*, each on its own; return for each None or why not."""
        results: list[Refused | None] = []
        for start in range(0, len(requests), _BATCH):
            results += self._batch(requests[start : start + _BATCH])
        return results

    def transact(self, begin: Request, requests: Sequence[Request], end: Request) -> None:
        """Carry out all of *requests*, or none: raise Refused with the first reason (nfnetlink's batches)."""
        *first, last = requests
        start = self._send([begin, *first, last._replace(flags=last.flags | nl.NLM_F_ACK), end])
        while True:
            for number, refusal in self._acknowledgements(start):
                if refusal:
                    raise refusal
                if number == len(requests):
                    return

    def ask(self, kind: int, body: bytes) -> bytes | None:
        """Return the one answer to a question; None when the object does not exist. Raises OSError."""
        return self.ask_all([Request(kind, 0, body)])[0]

    def ask_all(self, questions: Sequence[Request]) -> list[bytes | None]:
        """Return for each question its one answer, or None when that object does not exist; raise OSError."""
        answers: list[bytes | None] = []
        for first in range(0, len(questions), _BATCH):
            batch = questions[first : first + _BATCH]
            start = self._send(batch)
            while len(answers) < first + len(batch):  # the kernel answers in order
                answers += [_answer(*found) for found in self._receive(start)]
        return answers

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the payloads of all objects; raise OSError when they keep changing."""
        for _ in range(_DUMP_TRIES):
            found = self._dump_once(kind, body)
            if found is not None:
                return found
        raise Refused(errno.EINTR, f"the kernel's tables changed during each of {_DUMP_TRIES} reads")

    def _dump_once(self, kind: int, body: bytes) -> list[bytes] | None:
        """Always read to the end: what is left in the socket would be taken for the next answer."""
        start = self._send([Request(kind, nl.NLM_F_DUMP, body)])
        found: list[bytes] = []
        whole = True
        while True:
            for flags, answer, data in self._receive(start):
                whole = whole and not flags & nl.NLM_F_DUMP_INTR
                if answer == nl.NLMSG_DONE:
                    return found if whole else None
                if answer == nl.NLMSG_ERROR:
                    raise _refusal(data, flags) or Refused(errno.EPROTO, os.strerror(errno.EPROTO))
                found.append(data)

    def _batch(self, requests: Sequence[Request]) -> list[Refused | None]:
        """Ask for one acknowledgement, that of the last request.

        The kernel works through a batch in order and reports every failure, asked or not; so that one
        acknowledgement says that the silent ones succeeded.
        """
        *first, last = requests
        start = self._send([*first, last._replace(flags=last.flags | nl.NLM_F_ACK)])
        results: list[Refused | None] = [None] * len(requests)
        try:
            while True:
                for number, refusal in self._acknowledgements(start):
                    results[number] = refusal
                    if number == len(requests) - 1:
                        return results
        except OSError as failure:  # ENOBUFS: some answers are lost, and we cannot know which
            return [Refused(failure.errno or errno.EIO, str(failure.strerror))] * len(requests)

    def _acknowledgements(self, start: int) -> Iterator[tuple[int, Refused | None]]:
        size = self._socket.recv_into(self._buffer)
        offset = 0
        while offset < size:
            length, kind, flags, sequence, _ = HEADER.unpack_from(self._buffer, offset)
            if kind == nl.NLMSG_ERROR and sequence >= start:
                data = bytes(self._buffer[offset + HEADER.size : offset + length])
                yield sequence - start, _refusal(data, flags)
            offset += (length + 3) & ~3

    def _send(self, requests: Sequence[Request]) -> int:
        start = self._sequence + 1
        parts: list[bytes] = []
        for sequence, (kind, flags, body) in enumerate(requests, start):
            size = HEADER.size + len(body)
            header = HEADER.pack(size, kind, flags | nl.NLM_F_REQUEST, sequence, 0)
            parts += (header, body, b"\0" * (-size % 4))
        self._sequence += len(requests)
        self._socket.send(b"".join(parts))
        return start

    def _receive(self, start: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield flags, kind and payload of messages that answer a request as of number *start*."""
        size = self._socket.recv_into(self._buffer)
        data = bytes(self._buffer[:size])
        offset = 0
        while offset < size:
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if sequence >= start:
                yield flags, kind, data[offset + HEADER.size : offset + length]
            offset += (length + 3) & ~3


def prefer(raw: socket.socket, level: int, option: int, value: int, otherwise: str) -> None:
    """Set an option of a socket; where the kernel refuses it, warn once of what that costs."""
    try:
        raw.setsockopt(level, option, value)
    except OSError as failure:
        degraded(otherwise, failure)


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode the attributes from *offset* on, without the kernel's nesting flags."""
    found: dict[int, bytes] = {}
    end, mask = len(data) - 3, nl.NLA_TYPE_MASK
    while offset < end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & mask] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _answer(flags: int, kind: int, data: bytes) -> bytes | None:
    if kind != nl.NLMSG_ERROR:
        return data
    refusal = _refusal(data, flags)
    if refusal is None or refusal.errno in (errno.ENODEV, errno.ENOENT):
        return None
    raise refusal


def _refusal(data: bytes, flags: int) -> Refused | None:
    number = -int.from_bytes(data[:4], sys.byteorder, signed=True)
    if number == 0:
        return None
    text = attributes(data, _ERROR_SIZE).get(nl.NLMSGERR_ATTR_MSG, b"") if flags & nl.NLM_F_ACK_TLVS else b""
    return Refused(number, text.rstrip(b"\0").decode(errors="replace") or os.strerror(number))
