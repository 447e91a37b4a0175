"""What a kernel refuses and can be done without: the operator hears of it once, and of what it costs."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from driver.kernel import degraded
from driver.kernel.balancers import conntrack
from driver.kernel.balancers.conntrack import Stale
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.events import HostListener, SpaceListener
from driver.kernel.netlink.socket import Channel


class Refusing(socket.socket):
    """A route socket whose kernel has none of some options."""

    refused: frozenset[tuple[int, int]] = frozenset()

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] in self.refused:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        super().setsockopt(*arguments)


@pytest.fixture(autouse=True)
def young_process() -> None:
    degraded._warn.cache_clear()


@pytest.fixture
def sockets() -> Iterator[list[Refusing]]:
    made = [Refusing(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for _ in range(3)]
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("level", "option", "cost"),
    [
        (socket.SOL_SOCKET, nl.SO_RCVBUFFORCE, "the outcome of very large changes may be lost"),
        (socket.SOL_SOCKET, nl.SO_SNDBUFFORCE, "very large changes may fail"),
        (nl.SOL_NETLINK, nl.NETLINK_EXT_ACK, "the kernel's refusals come without an explanation"),
        (nl.SOL_NETLINK, nl.NETLINK_GET_STRICT_CHK, "the state of networks is read more slowly"),
    ],
)
def test_a_channel_does_without_an_option(
    sockets: list[Refusing], caplog: pytest.LogCaptureFixture, level: int, option: int, cost: str
) -> None:
    for one in sockets:
        one.refused = frozenset({(level, option)})
        assert Channel(one).dump(nl.RTM_GETLINK, bytes(16))
    assert caplog.text.count(cost) == 1
    assert os.strerror(errno.ENOPROTOOPT) in caplog.text


def test_a_listener_does_without_its_filter(
    sockets: list[Refusing], caplog: pytest.LogCaptureFixture
) -> None:
    for one in sockets:
        one.refused = frozenset({(socket.SOL_SOCKET, nl.SO_ATTACH_FILTER)})
    SpaceListener(sockets[0])
    HostListener(sockets[1])
    assert caplog.text.count("every message of the kernel is looked at") == 1


@pytest.mark.parametrize(("number", "warnings"), [(errno.EPERM, 1), (errno.ENOENT, 0)])
def test_connections_that_cannot_be_ended_are_told_of_once_but_not_those_of_containers_that_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, warnings: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(conntrack, "forget", refuse)
    monkeypatch.setattr(NetlinkSandboxes, "_enter", lambda *_: None)
    sandboxes, wake = NetlinkSandboxes(), os.eventfd(0, os.EFD_CLOEXEC)
    sandboxes._stale = {"/one": Stale(), "/two": Stale()}
    while sandboxes._stale:  # it goes on as soon as anything is mounted on this machine
        sandboxes.await_news(0.2, wake)
    os.close(wake)
    sandboxes.close()
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == warnings
