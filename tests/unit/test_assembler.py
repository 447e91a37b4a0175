"""Jumps go where their label is."""

from __future__ import annotations

import struct

import pytest

from driver.kernel import assembler as asm
from driver.kernel.assembler import CLASSIC, EXTENDED, Line, Step, assemble

KEEP: Step = (asm.BPF_RET, 0, 0, 1)


def jump(label: str) -> Step:
    return asm.BPF_JMP | asm.BPF_JA, 0, label, 0


def test_a_label_is_the_step_after_it_and_jumps_count_what_is_between() -> None:
    lines: list[Line] = [
        jump("end"),
        "middle",
        KEEP,
        jump("middle"),
        "also the end",
        "end",
        jump("also the end"),
    ]
    offsets = [step[2] for step in EXTENDED.iter_unpack(assemble(EXTENDED, lines))]
    assert offsets == [2, 0, -2, -1]


def test_a_label_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        assemble(EXTENDED, [jump("nowhere")])


def test_a_jump_that_is_too_long_is_an_error() -> None:
    steps: list[Line] = [(asm.BPF_JMP | asm.BPF_JEQ, "end", 0, 0), *[KEEP] * 256, "end", KEEP]
    with pytest.raises(struct.error):
        assemble(CLASSIC, steps)
