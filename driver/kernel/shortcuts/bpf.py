"""The program's map, and how both are loaded into the kernel: by bpf(2), without a library."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct

from driver.kernel.assembler import EXTENDED
from driver.kernel.shortcuts.program import SENDERS, assembled
from driver.wish.values import Mac, octets

NAME = b"pyoverlay"

_NUMBER = {"x86_64": 321, "aarch64": 280}
"""Of the system call bpf."""
# linux/bpf.h
BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM, BPF_PROG_LOAD = 0, 2, 3, 5
BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD, BPF_MAP_LOOKUP_BATCH = 13, 14, 15, 24
BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_F_NO_PREALLOC, BPF_PROG_TYPE_SCHED_CLS = 1, 2, 1, 3
_ROWS = 1024
"""A bridge has at most 1023 ports."""
_KEY, _VALUE = struct.Struct("=6sxx"), struct.Struct("=I")
_PROG_INFO = struct.Struct("=52xIQ")  # of struct bpf_prog_info: nr_map_ids, map_ids

_libc = ctypes.CDLL(None, use_errno=True)


class Rows:
    """A map from destination address to index of a port. Close it; a program that uses it keeps it alive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def new(cls) -> Rows:
        """Make an empty one; raise OSError."""
        return cls(_new_map(BPF_MAP_TYPE_HASH, _KEY.size, _VALUE.size, _ROWS, BPF_F_NO_PREALLOC))

    @classmethod
    def of(cls, program: int) -> Rows:
        """Open that of the loaded program with this id; raise OSError."""
        descriptor = _bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("=I", program))
        try:
            ids = ctypes.create_string_buffer(8)
            info = ctypes.create_string_buffer(_PROG_INFO.pack(2, ctypes.addressof(ids)), _PROG_INFO.size)
            _bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
            if _PROG_INFO.unpack(info.raw)[0] != 2:
                raise OSError(errno.ENOENT, "not our program")
        finally:
            os.close(descriptor)
        return cls(
            _bpf(BPF_MAP_GET_FD_BY_ID, ids.raw[:4])
        )  # in the order in which the program refers to them

    def put(self, mac: Mac, port: int) -> None:
        """Add or change a row; raise OSError."""
        value = ctypes.create_string_buffer(_VALUE.pack(port))
        self._row(BPF_MAP_UPDATE_ELEM, mac, ctypes.addressof(value))

    def delete(self, mac: Mac) -> None:
        """Remove a row; one that is gone is no error. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._row(BPF_MAP_DELETE_ELEM, mac, 0)  # without a value

    def dump(self) -> list[tuple[Mac, int]]:
        """Return all rows; raise OSError."""
        keys, values = (ctypes.create_string_buffer(_ROWS * s.size) for s in (_KEY, _VALUE))
        place = ctypes.create_string_buffer(8)
        pointers = (0, *(ctypes.addressof(one) for one in (place, keys, values)))
        batch = ctypes.create_string_buffer(
            struct.pack("=QQQQIIQQ", *pointers, _ROWS, self._descriptor, 0, 0)
        )
        with contextlib.suppress(FileNotFoundError):  # no more keys
            _call(BPF_MAP_LOOKUP_BATCH, batch)
        (count,) = struct.unpack_from("=I", batch, 32)
        macs = (Mac(packed.hex(":")) for (packed,) in _KEY.iter_unpack(keys.raw[: count * _KEY.size]))
        ports = (port for (port,) in _VALUE.iter_unpack(values.raw[: count * _VALUE.size]))
        return list(zip(macs, ports, strict=True))

    def load(self) -> int:
        """Load the program with this map; return its descriptor. Raises OSError."""
        senders = _new_map(BPF_MAP_TYPE_ARRAY, 4, 8, SENDERS, 0)
        try:
            steps = assembled(self._descriptor, senders)
            code, text = ctypes.create_string_buffer(steps), ctypes.create_string_buffer(b"Apache-2.0")
            addresses = (ctypes.addressof(code), ctypes.addressof(text))
            head = (BPF_PROG_TYPE_SCHED_CLS, len(steps) // EXTENDED.size, *addresses)
            return _bpf(BPF_PROG_LOAD, struct.pack("=IIQQIIQII16s", *head, 0, 0, 0, 0, 0, NAME))
        finally:
            os.close(senders)

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._descriptor)

    def _row(self, command: int, mac: Mac, value: int) -> None:
        key = ctypes.create_string_buffer(_KEY.pack(octets(mac)))
        _bpf(command, struct.pack("=IxxxxQQQ", self._descriptor, ctypes.addressof(key), value, 0))


def _new_map(kind: int, key: int, value: int, size: int, flags: int) -> int:
    return _bpf(BPF_MAP_CREATE, struct.pack("=7I16s", kind, key, value, size, flags, 0, 0, NAME))


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
