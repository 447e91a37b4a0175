"""BPF with labels: a jump names its target, and the steps in between are counted here.

Sockets filter with the classic dialect (linux/filter.h), tc with the extended one (linux/bpf.h). Their steps
have other fields, and most of their operations the same numbers (linux/bpf_common.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

Step = tuple[int | str, ...]
"""The fields of one step; a string among them is the label of the step to jump to."""
Line = Step | str
"""A step, or the label of the step that follows."""

CLASSIC: Final = struct.Struct("=HBBI")
"""Operation, steps to leave out if true, and if false, operand."""
EXTENDED: Final = struct.Struct("=BBhi")
"""Operation, registers (the one written to is the lower half), offset, operand."""

# Classes, and sizes and modes of memory access
BPF_LD, BPF_LDX, BPF_STX, BPF_ALU, BPF_JMP, BPF_RET, BPF_ALU64 = 0x00, 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
BPF_W, BPF_H, BPF_B, BPF_DW = 0x00, 0x08, 0x10, 0x18
BPF_IMM, BPF_ABS, BPF_MEM = 0x00, 0x20, 0x60
# Operations
BPF_ADD, BPF_OR, BPF_AND, BPF_LSH, BPF_RSH, BPF_MOV, BPF_END = 0x00, 0x40, 0x50, 0x60, 0x70, 0xB0, 0xD0
BPF_JA, BPF_JEQ, BPF_JGT, BPF_JSET, BPF_JNE, BPF_CALL, BPF_EXIT = 0x00, 0x10, 0x20, 0x40, 0x50, 0x80, 0x90
# Whether the other operand is a number or a register, and the byte order to convert to
BPF_K, BPF_X, BPF_TO_BE = 0x00, 0x08, 0x08


def assemble(layout: struct.Struct, lines: Iterable[Line]) -> bytes:
    """Pack a program.

    Raises KeyError for an undefined label, struct.error for a jump too long for its field.
    """
    steps: list[Step] = []
    places: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            places[line] = len(steps)
        else:
            steps.append(line)
    return b"".join(
        layout.pack(*(places[field] - number if isinstance(field, str) else field for field in step))
        for number, step in enumerate(steps, 1)
    )
