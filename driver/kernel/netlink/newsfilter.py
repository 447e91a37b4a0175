"""Programs by which the kernel drops messages before a listener hears them (socket(7), SO_ATTACH_FILTER).

Classic BPF: one accumulator, and in the end the number of bytes to keep. It loads in network order, and
netlink's fields are in the machine's.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from driver.kernel import assembler as asm
from driver.kernel.assembler import Line, Step
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import HEADER

_NLMSG_TYPE = 4
"""Its offset in the header (nlmsghdr); the other offsets count from the header's end."""
_NDM_FAMILY, _NDM_IFINDEX, _NDM_FLAGS = 0, 4, 10
_RTM_DST_LEN = 1


def rows_of(devices: Collection[int]) -> bytes:
    """Drop rows of devices other than *devices*, and those that a bridge keeps for them."""
    lines: list[Line] = [
        _load(asm.BPF_H, _NLMSG_TYPE),
        *_jump(asm.BPF_JEQ, _half(nl.RTM_NEWNEIGH), "row"),
        *_jump(asm.BPF_JEQ, _half(nl.RTM_DELNEIGH), "row"),
        _KEEP,
        "row",
        _load(asm.BPF_W, HEADER.size + _NDM_IFINDEX),
        *(step for index in devices for step in _jump(asm.BPF_JEQ, _word(index), "known device")),
        _DROP,
        "known device",
        _load(asm.BPF_B, HEADER.size + _NDM_FAMILY),
        *_jump(asm.BPF_JEQ, nl.AF_BRIDGE, "FDB row"),
        _KEEP,
        "FDB row",
        _load(asm.BPF_B, HEADER.size + _NDM_FLAGS),
        *_jump(asm.BPF_JSET, nl.NTF_SELF, "its own"),
        _DROP,
        "its own",
        _KEEP,
    ]
    return asm.assemble(asm.CLASSIC, lines)


def default_routes() -> bytes:
    """Drop all routes except default routes."""
    lines: list[Line] = [
        _load(asm.BPF_H, _NLMSG_TYPE),
        *_jump(asm.BPF_JEQ, _half(nl.RTM_NEWROUTE), "route"),
        *_jump(asm.BPF_JEQ, _half(nl.RTM_DELROUTE), "route"),
        _KEEP,
        "route",
        _load(asm.BPF_B, HEADER.size + _RTM_DST_LEN),
        *_jump(asm.BPF_JEQ, 0, "default route"),
        _DROP,
        "default route",
        _KEEP,
    ]
    return asm.assemble(asm.CLASSIC, lines)


def is_row_of(data: bytes, devices: Collection[int]) -> bool:
    """Decide about a message as `rows_of` does, for kernels that refuse that."""
    (index,) = struct.unpack_from("=i", data, _NDM_IFINDEX)
    return index in devices and (data[_NDM_FAMILY] != nl.AF_BRIDGE or bool(data[_NDM_FLAGS] & nl.NTF_SELF))


def is_default_route(data: bytes) -> bool:
    """Decide about a message as `default_routes` does."""
    return data[_RTM_DST_LEN] == 0


_KEEP: Step = (asm.BPF_RET | asm.BPF_K, 0, 0, 0xFFFFFFFF)
_DROP: Step = (asm.BPF_RET | asm.BPF_K, 0, 0, 0)


def _load(size: int, offset: int) -> Step:
    return asm.BPF_LD | asm.BPF_ABS | size, 0, 0, offset


def _jump(condition: int, operand: int, label: str) -> tuple[Step, Step]:
    # Two steps, since the first kind reaches 255 steps only and the second one any.
    unless = asm.BPF_JMP | condition | asm.BPF_K, 0, 1, operand
    return unless, (asm.BPF_JMP | asm.BPF_JA, 0, 0, label)


def _half(value: int) -> int:
    return int.from_bytes(struct.pack("=H", value), "big")


def _word(value: int) -> int:
    return int.from_bytes(struct.pack("=I", value), "big")
