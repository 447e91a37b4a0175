"""Which messages the kernel drops for us, tried on a machine as linux/filter.h describes it."""

from __future__ import annotations

import struct
from itertools import product

import pytest

from driver.kernel.assembler import CLASSIC
from driver.kernel.netlink import newsfilter
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import HEADER

DEVICES = range(1000, 1300)


def keeps(program: bytes, message: bytes) -> bool:
    """Run a program of classic BPF: every operation that it may consist of."""
    steps = list(CLASSIC.iter_unpack(program))
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        match code:
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                accumulator = int.from_bytes(message[operand : operand + size], "big")
            case 0x05:
                place += operand
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x45:
                place += if_true if accumulator & operand else if_false
            case 0x06:
                return bool(operand)
            case _:
                raise ValueError(f"no such operation: {code:#x}")


def message(kind: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, 0, 1, 0) + body


def row(device: int, family: int = nl.AF_BRIDGE, flags: int = nl.NTF_SELF) -> bytes:
    return struct.pack("=BxxxiHBB", family, device, nl.NUD_PERMANENT, flags, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 255, 256, 300, 1000])
def test_of_rows_those_of_the_tunnels_are_kept_however_many_these_are(count: int) -> None:
    devices = range(1000, 1000 + count)
    program = newsfilter.rows_of(devices)
    assert all(keeps(program, message(nl.RTM_NEWNEIGH, row(device))) for device in devices)
    assert not any(keeps(program, message(nl.RTM_NEWNEIGH, row(d))) for d in (0, 1, 999, 1000 + count))


@pytest.mark.parametrize("kind", [nl.RTM_NEWNEIGH, nl.RTM_DELNEIGH])
def test_what_a_bridge_learns_of_them_is_dropped(kind: int) -> None:
    program = newsfilter.rows_of(DEVICES)
    kept = {
        (family, flags): keeps(program, message(kind, row(1299, family, flags)))
        for family, flags in product(
            (2, 10, nl.AF_BRIDGE), (0, nl.NTF_MASTER, nl.NTF_SELF, nl.NTF_SELF | 0x10)
        )
    }
    assert [key for key, is_kept in kept.items() if not is_kept] == [
        (nl.AF_BRIDGE, 0),
        (nl.AF_BRIDGE, nl.NTF_MASTER),
    ]


@pytest.mark.parametrize("kind", [nl.RTM_NEWLINK, nl.RTM_DELLINK, nl.RTM_NEWADDR, nl.RTM_DELTFILTER])
def test_all_else_is_kept(kind: int) -> None:
    assert keeps(newsfilter.rows_of(DEVICES), message(kind, bytes(16)))
    assert keeps(newsfilter.default_routes(), message(kind, bytes(16)))


def test_of_routes_the_default_ones_are_kept() -> None:
    for kind, length in product((nl.RTM_NEWROUTE, nl.RTM_DELROUTE), (0, 1, 24, 128)):
        body = bytes([2, length]) + bytes(10)
        assert keeps(newsfilter.default_routes(), message(kind, body)) == (length == 0)
        assert newsfilter.is_default_route(body) == (length == 0)


def test_where_the_kernel_does_not_drop_them_the_same_is_asked_of_each_message() -> None:
    program = newsfilter.rows_of(DEVICES)
    for device, family, flags in product((1, 999, 1000, 1299, 1300), (2, nl.AF_BRIDGE), range(8)):
        body = row(device, family, flags)
        assert newsfilter.is_row_of(body, DEVICES) == keeps(program, message(nl.RTM_NEWNEIGH, body))
