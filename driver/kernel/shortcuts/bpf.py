"""The one BPF program of ours: assembled here, loaded by bpf(2). No compiler, no object file.

It looks at a frame's destination address. One that its map knows goes straight into the container behind
that port; every other goes on as if the program were not there. So does a sender's first frame in each
minute or so: the bridge learns from it where that sender is, and would else flood all that is sent there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from driver.wish.values import Mac, octets

NAME = b"pyoverlay"

_NUMBER = {"x86_64": 321, "aarch64": 280}
"""Of the system call bpf."""
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD = 0, 2, 3, 5
_PROG_BY_ID, _MAP_BY_ID, _INFO, _LOOKUP_BATCH = 13, 14, 15, 24
_HASH, _ARRAY, _NO_PREALLOC, _SCHED_CLS = 1, 2, 1, 3
_ROWS = 1024
"""A bridge has at most 1023 ports."""
_SENDERS = 4096
"""Two senders with one place take turns in it, over the bridge: slower, not wrong."""
_MINUTE = 14
"""Two to this power are 16 to 164 s of jiffies, by the kernel's HZ; a bridge forgets after 300 s."""
_LOOKUP, _CHANGE_TYPE, _JIFFIES, _REDIRECT_PEER = 1, 32, 118, 155
"""Helpers (bpf-helpers(7))."""
_DATA, _DATA_END = 76, 80  # of struct __sk_buff
_KEY, _VALUE = struct.Struct("=6sxx"), struct.Struct("=I")
_PROG_INFO = struct.Struct("=52xIQ")  # nr_map_ids, map_ids

_libc = ctypes.CDLL(None, use_errno=True)


class Rows:
    """A map: destination address to index of a port. Close it; a program that uses it keeps it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def new(cls) -> Rows:
        """Make an empty one; raise OSError."""
        return cls(_new_map(_HASH, _KEY.size, _VALUE.size, _ROWS, _NO_PREALLOC))

    @classmethod
    def of(cls, program: int) -> Rows:
        """Open that of the loaded program with this id; raise OSError."""
        descriptor = _bpf(_PROG_BY_ID, struct.pack("=I", program))
        try:
            ids = ctypes.create_string_buffer(8)
            info = ctypes.create_string_buffer(_PROG_INFO.pack(2, ctypes.addressof(ids)), _PROG_INFO.size)
            _bpf(_INFO, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
            if _PROG_INFO.unpack(info.raw)[0] != 2:
                raise OSError(errno.ENOENT, "not our program")
        finally:
            os.close(descriptor)
        return cls(_bpf(_MAP_BY_ID, ids.raw[:4]))  # in the order in which the program names them

    def put(self, mac: Mac, port: int) -> None:
        """Add or change a row; raise OSError."""
        value = ctypes.create_string_buffer(_VALUE.pack(port))
        self._row(_MAP_UPDATE, mac, ctypes.addressof(value))

    def delete(self, mac: Mac) -> None:
        """Remove a row; one that is gone is no error. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._row(_MAP_DELETE, mac, 0)  # without a value

    def dump(self) -> list[tuple[Mac, int]]:
        """Return all rows; raise OSError."""
        keys, values = (ctypes.create_string_buffer(_ROWS * s.size) for s in (_KEY, _VALUE))
        place = ctypes.create_string_buffer(8)
        pointers = (0, *(ctypes.addressof(one) for one in (place, keys, values)))
        batch = ctypes.create_string_buffer(
            struct.pack("=QQQQIIQQ", *pointers, _ROWS, self._descriptor, 0, 0)
        )
        with contextlib.suppress(FileNotFoundError):  # these were all
            _call(_LOOKUP_BATCH, batch)
        (count,) = struct.unpack_from("=I", batch, 32)
        macs = (Mac(packed.hex(":")) for (packed,) in _KEY.iter_unpack(keys.raw[: count * _KEY.size]))
        ports = (port for (port,) in _VALUE.iter_unpack(values.raw[: count * _VALUE.size]))
        return list(zip(macs, ports, strict=True))

    def load(self) -> int:
        """Load the program with this map; return its descriptor. Raises OSError."""
        senders = _new_map(_ARRAY, 4, 8, _SENDERS, 0)
        try:
            steps = b"".join(_program(self._descriptor, senders))
            code, text = ctypes.create_string_buffer(steps), ctypes.create_string_buffer(b"Apache-2.0")
            addresses = (ctypes.addressof(code), ctypes.addressof(text))
            head = (_SCHED_CLS, len(steps) // 8, *addresses)
            return _bpf(_PROG_LOAD, struct.pack("=IIQQIIQII16s", *head, 0, 0, 0, 0, 0, NAME))
        finally:
            os.close(senders)

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._descriptor)

    def _row(self, command: int, mac: Mac, value: int) -> None:
        key = ctypes.create_string_buffer(_KEY.pack(octets(mac)))
        _bpf(command, struct.pack("=IxxxxQQQ", self._descriptor, ctypes.addressof(key), value, 0))


def _program(rows: int, senders: int) -> Iterator[bytes]:
    """Yield the steps. Register 0 is a result, 1 to 5 are arguments, 6 to 9 are kept, 10 is the stack's end.

    Jumps count the steps that they leave out: all but one go to the last two, which leave it to the bridge.
    """
    yield _step(0xBF, 6, 1)  # r6 = the frame
    yield _step(0x61, 2, 1, _DATA)
    yield _step(0x61, 3, 1, _DATA_END)
    yield _step(0xBF, 4, 2)
    yield _step(0x07, 4, value=14)
    yield _step(0x2D, 4, 3, 38)  # no whole Ethernet header
    yield _step(0x61, 4, 2, 0)  # the destination becomes the key, on the stack
    yield _step(0x63, 10, 4, -8)
    yield _step(0x69, 4, 2, 4)
    yield _step(0x63, 10, 4, -4)
    yield _step(0x61, 8, 2, 6)  # r8 = the sender, r9 = its last two bytes
    yield _step(0x69, 9, 2, 10)
    yield _step(0x67, 8, value=16)
    yield _step(0x4F, 8, 9)
    yield _step(0xBF, 2, 10)
    yield _step(0x07, 2, value=-8)
    yield _step(0x18, 1, 1, value=rows)  # r1 = the map; this step is two long
    yield _step(0)
    yield _step(0x85, value=_LOOKUP)
    yield _step(0x15, 0, offset=24)  # no container of ours
    yield _step(0x61, 7, 0)  # r7 = the port
    yield _step(0x85, value=_JIFFIES)
    yield _step(0x77, 0, value=_MINUTE)
    yield _step(0x67, 0, value=48)
    yield _step(0x4F, 8, 0)  # r8 = the minute and the sender
    yield _step(0xDC, 9, value=16)  # its place: big-endian, so that neighbours' differ
    yield _step(0x57, 9, value=_SENDERS - 1)
    yield _step(0x63, 10, 9, -8)
    yield _step(0xBF, 2, 10)
    yield _step(0x07, 2, value=-8)
    yield _step(0x18, 1, 1, value=senders)
    yield _step(0)
    yield _step(0x85, value=_LOOKUP)
    yield _step(0x15, 0, offset=10)  # never: the array has that place, but the kernel wants it checked
    yield _step(0x79, 1, 0)
    yield _step(0x5D, 1, 8, 7)  # its first frame in this minute: to be written down
    yield _step(0xBF, 1, 6)
    yield _step(0xB7, 2)
    yield _step(0x85, value=_CHANGE_TYPE)  # from "another host's" to "for this host"
    yield _step(0xBF, 1, 7)
    yield _step(0xB7, 2)
    yield _step(0x85, value=_REDIRECT_PEER)
    yield _step(0x95)
    yield _step(0x7B, 0, 8)
    yield _step(0xB7, 0, value=-1)  # TC_ACT_UNSPEC: as the next one says, in the end the bridge
    yield _step(0x95)


def _step(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, value)


def _new_map(kind: int, key: int, value: int, size: int, flags: int) -> int:
    return _bpf(_MAP_CREATE, struct.pack("=7I16s", kind, key, value, size, flags, 0, 0, NAME))


def _bpf(command: int, attributes: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)))


def _call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = int(_libc.syscall(number, command, attributes, len(attributes)))
    if result < 0:
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))
    return result
