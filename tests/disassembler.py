"""Extended BPF in words, as llvm-objdump has them; written from linux/bpf.h, not from our assembler."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_STEP = struct.Struct("=BBhi")
_SIZES = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
_COMPUTATIONS = {0x0: "+=", 0x4: "|=", 0x5: "&=", 0x6: "<<=", 0x7: ">>=", 0xB: "="}
_CONDITIONS = {0x1: "==", 0x2: ">", 0x5: "!="}


def disassemble(program: bytes) -> Iterator[str]:
    """Yield for each step its number, its bytes and what it does; jumps name the step that they go to."""
    steps = list(_STEP.iter_unpack(program))
    for number, step in enumerate(steps):
        follows_wide = number > 0 and steps[number - 1][0] == 0x18
        words = "" if follows_wide else _words(number, *step)
        yield f"{number:3}  {program[number * 8 : number * 8 + 8].hex(' ')}  {words}".rstrip()


def _words(number: int, code: int, registers: int, offset: int, value: int) -> str:
    to, source = f"r{registers & 15}", f"r{registers >> 4}"
    operand = source if code & 0x08 else f"{value}"
    place = f"{offset:+}".replace("+", "+ ").replace("-", "- ")
    match code & 0x07:
        case 0x00 if code == 0x18:
            words = f"{to} = map of descriptor {value}"
        case 0x01:
            words = f"{to} = *({_SIZES[code & 0x18]} *)({source} {place})"
        case 0x03:
            words = f"*({_SIZES[code & 0x18]} *)({to} {place}) = {source}"
        case 0x04 if code == 0xDC:
            words = f"{to} = be{value} {to}"
        case 0x05 if code == 0x85:
            words = f"call {value}"
        case 0x05 if code == 0x95:
            words = "exit"
        case 0x05:
            words = f"if {to} {_CONDITIONS[code >> 4]} {operand} goto {number + 1 + offset}"
        case 0x07:
            words = f"{to} {_COMPUTATIONS[code >> 4]} {operand}"
        case _:
            raise ValueError(f"no words for operation {code:#x}")
    return words
