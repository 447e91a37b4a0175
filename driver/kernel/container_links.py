"""Containers' own interfaces, once the engine has moved them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from driver.kernel import netns
from driver.kernel.netlink import links, messages
from driver.kernel.netlink.socket import Channel
from driver.wish.values import Mac


def lower_mtu(sandbox: Path, mac: Mac, mtu: int) -> int:
    """Have the veth with *mac* in *sandbox* send no more than *mtu*; return what it had, or 0 if not more.

    Its connections go on: TCP cuts its segments anew, datagrams are sent in fragments. Raises OSError.
    """
    with closing(_channel(sandbox)) as channel:
        for link in links.links(channel).values():
            if link.kind == "veth" and link.mac == mac and link.mtu > mtu:
                channel.do(messages.resized(link.index, mtu))
                return link.mtu
    return 0


def _channel(sandbox: Path) -> Channel:
    descriptor = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.inside(descriptor, Channel.here)
    finally:
        os.close(descriptor)
