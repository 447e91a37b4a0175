"""Our only BPF program, step by step. No compiler, no object file.

It looks at a frame's destination address. One that its map knows goes straight into the container behind
that port; every other goes on as if the program were not there. So does a sender's first frame in each
minute or so: the bridge learns from it where that sender is, and would otherwise flood all frames to it.
"""

from __future__ import annotations

from functools import partial

from driver.kernel import assembler as asm
from driver.kernel.assembler import Line, Step

SENDERS = 4096
"""Places in the map of senders. Two that share one take turns, over the bridge: slower, not wrong."""
_MINUTE = 14
"""Two to this power is 16 to 164 s of jiffies, depending on the kernel's HZ; a bridge forgets after 300 s."""

# linux/bpf.h: helpers, offsets in struct __sk_buff
BPF_FUNC_map_lookup_elem, BPF_FUNC_skb_change_type = 1, 32
BPF_FUNC_jiffies64, BPF_FUNC_redirect_peer = 118, 155
BPF_PSEUDO_MAP_FD = 1
SKB_DATA, SKB_DATA_END = 76, 80
# linux/if_ether.h, linux/if_packet.h, linux/pkt_cls.h
ETH_HLEN, ETH_DEST, ETH_SOURCE = 14, 0, 6
PACKET_HOST = 0
TC_ACT_UNSPEC = -1


class Register(int):
    """Of a running program. 0 is a result, 1 to 5 are arguments, 6 to 9 are kept, 10 is the stack's end."""


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = map(Register, range(11))


def assembled(rows: int, senders: int) -> bytes:
    """Return the program, with the descriptors of its maps.

    *rows* maps destinations to ports; *senders* is an array of the last sender in each place, and its minute.
    """
    lines: list[Line] = [
        _move(R6, R1),  # r6 = the frame
        _load(asm.BPF_W, R2, R1, SKB_DATA),
        _load(asm.BPF_W, R3, R1, SKB_DATA_END),
        _move(R4, R2),
        _add(R4, ETH_HLEN),
        _jump(asm.BPF_JGT, R4, R3, "over the bridge"),  # no whole Ethernet header
        _load(asm.BPF_W, R4, R2, ETH_DEST),  # the destination becomes the key, on the stack
        _store(asm.BPF_W, R10, -8, R4),
        _load(asm.BPF_H, R4, R2, ETH_DEST + 4),
        _store(asm.BPF_W, R10, -4, R4),
        _load(asm.BPF_W, R8, R2, ETH_SOURCE),  # r8 = the sender, r9 = its last two bytes
        _load(asm.BPF_H, R9, R2, ETH_SOURCE + 4),
        _left(R8, 16),
        _or(R8, R9),
        _move(R2, R10),
        _add(R2, -8),
        *_load_map(R1, rows),
        _call(BPF_FUNC_map_lookup_elem),
        _jump(asm.BPF_JEQ, R0, 0, "over the bridge"),  # no container of ours
        _load(asm.BPF_W, R7, R0, 0),  # r7 = the port
        _call(BPF_FUNC_jiffies64),
        _right(R0, _MINUTE),
        _left(R0, 48),
        _or(R8, R0),  # r8 = the minute and the sender
        _big_endian(R9, 16),  # the sender's place: big-endian, so that neighbours' differ
        _and(R9, SENDERS - 1),
        _store(asm.BPF_W, R10, -8, R9),
        _move(R2, R10),
        _add(R2, -8),
        *_load_map(R1, senders),
        _call(BPF_FUNC_map_lookup_elem),
        _jump(
            asm.BPF_JEQ, R0, 0, "over the bridge"
        ),  # never: each place exists, but the verifier wants the check
        _load(asm.BPF_DW, R1, R0, 0),
        _jump(asm.BPF_JNE, R1, R8, "first in this minute"),
        _move(R1, R6),
        _move(R2, PACKET_HOST),  # it was for another host, by the tunnel's own address
        _call(BPF_FUNC_skb_change_type),
        _move(R1, R7),
        _move(R2, 0),
        _call(BPF_FUNC_redirect_peer),
        _exit(),
        "first in this minute",
        _store(asm.BPF_DW, R0, 0, R8),
        "over the bridge",
        _move(R0, TC_ACT_UNSPEC),  # as the next filter says, in the end the bridge
        _exit(),
    ]
    return asm.assemble(asm.EXTENDED, lines)


def _compute(operation: int, to: Register, operand: int) -> Step:
    if isinstance(operand, Register):
        return asm.BPF_ALU64 | operation | asm.BPF_X, to | operand << 4, 0, 0
    return asm.BPF_ALU64 | operation | asm.BPF_K, to, 0, operand


_move, _add = partial(_compute, asm.BPF_MOV), partial(_compute, asm.BPF_ADD)
_and, _or = partial(_compute, asm.BPF_AND), partial(_compute, asm.BPF_OR)
_left, _right = partial(_compute, asm.BPF_LSH), partial(_compute, asm.BPF_RSH)


def _big_endian(to: Register, bits: int) -> Step:
    return asm.BPF_ALU | asm.BPF_END | asm.BPF_TO_BE, to, 0, bits


def _load(size: int, to: Register, at: Register, offset: int) -> Step:
    return asm.BPF_LDX | asm.BPF_MEM | size, to | at << 4, offset, 0


def _store(size: int, at: Register, offset: int, what: Register) -> Step:
    return asm.BPF_STX | asm.BPF_MEM | size, at | what << 4, offset, 0


def _load_map(to: Register, descriptor: int) -> tuple[Step, Step]:
    wide = asm.BPF_LD | asm.BPF_IMM | asm.BPF_DW  # takes the operand of the next step as well
    return (wide, to | BPF_PSEUDO_MAP_FD << 4, 0, descriptor), (0, 0, 0, 0)


def _jump(condition: int, left: Register, right: int, label: str) -> Step:
    if isinstance(right, Register):
        return asm.BPF_JMP | condition | asm.BPF_X, left | right << 4, label, 0
    return asm.BPF_JMP | condition | asm.BPF_K, left, label, right


def _call(helper: int) -> Step:
    return asm.BPF_JMP | asm.BPF_CALL, 0, 0, helper


def _exit() -> Step:
    return asm.BPF_JMP | asm.BPF_EXIT, 0, 0, 0
