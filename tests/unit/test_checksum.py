"""The checksum, by a published example and by what its receiver does with it."""

from __future__ import annotations

import pytest

from driver.checksum import internet_checksum


def test_the_example_of_the_rfc() -> None:
    # RFC 1071 section 3: the words add up to ddf2.
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@pytest.mark.parametrize("size", [0, 2, 4, 1500, 65536])
@pytest.mark.parametrize("filler", [0x00, 0x5A, 0xFF])
def test_with_its_checksum_a_packet_adds_up_to_nothing(size: int, filler: int) -> None:
    data = bytes([filler] * size)

    assert internet_checksum(data + internet_checksum(data).to_bytes(2)) == 0
