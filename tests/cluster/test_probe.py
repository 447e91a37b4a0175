"""Hosts are asked whether they live, however many descriptors this process has open."""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from driver.cluster import probe

HIGH = 1500
"""A descriptor that select(2) does not bear."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends, the first with a high descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 100), hard))
    low, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for one in (low, other):
        one.bind(("127.0.0.1", 0))
    high = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, HIGH))
    with low, other, high:
        yield high, other
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_answer_is_heard_on_a_high_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    high, other = pair
    header = b"\x45" + bytes(19)
    other.sendto(header + struct.pack("!BBHHH", 0, 0, 0, 0x0102, 1), high.getsockname())
    assert list(probe._answers(high, 4, b"\x01\x02")) == [ip_address("127.0.0.1")]


def test_the_wait_ends_when_nobody_answers(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_PAUSE", 0.05)
    assert list(probe._answers(pair[0], 4, b"\x01\x02")) == []
