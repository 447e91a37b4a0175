"""Shortcuts past the bridge: a tc filter of ours on a tunnel, and its rows (ADR 12)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import time
from pathlib import Path

from driver.kernel import netns
from driver.kernel.netlink import links, messages
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Channel, Refused, Request, attribute, attributes
from driver.kernel.refusal import GONE
from driver.kernel.shortcuts import bpf
from driver.kernel.shortcuts.bpf import Rows
from driver.wish.values import Mac, octets

_NEW = nl.NLM_F_CREATE | nl.NLM_F_EXCL
_TCMSG = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE = nl.TC_H_CLSACT & nl.TC_H_MAJ_MASK
_INGRESS = _CLSACT_HANDLE | nl.TC_H_MIN_INGRESS
_HANDLE, _PRIORITY = 1, 0x7079
_INFO = _PRIORITY << 16 | socket.htons(nl.ETH_P_ALL)
_NONE = (*GONE, errno.EINVAL, errno.EOPNOTSUPP)
"""How the kernel says that there is no filter: no device, no qdisc, or no support in this kernel."""
_OUR_NAME = bpf.NAME
"""A program that works differently needs another name, so that it replaces the old one."""

_LOOPBACK = 1
"""The index of every namespace's own loopback device."""
_PORT, _PEER, _MAC, _MTU = "port", "peer", Mac("02:00:00:00:00:01"), 1500
"""The names of the pair used to try shortcuts out."""
_FRAMES, _LOOKS, _PAUSE = 32, 10, 0.02


def try_out() -> None:
    """Send frames through one in an empty namespace; raise OSError if they are lost or not counted."""
    with contextlib.ExitStack() as stack:
        outside, inside = _nowhere(stack), _nowhere(stack)
        ends = [netns.inside(space, Channel.here) for space in (outside, inside)]
        for channel in ends:
            stack.callback(channel.close)
        ends[0].do(messages.new_pair(_PORT, _MTU, messages.ContainerEnd(_PEER, _MAC, _MTU, inside)))
        for channel, name in zip(ends, (_PORT, _PEER), strict=True):
            channel.do(messages.raised(_index(channel, name)))
        port = _index(ends[0], _PORT)
        lead(ends[0], _LOOPBACK, _MAC, port)
        if read_map(ends[0], _LOOPBACK) != [(_MAC, port)]:
            raise OSError(errno.EOPNOTSUPP, "its rows cannot be read back")
        netns.inside(outside, _send)
        if not netns.inside(inside, _are_counted):
            raise OSError(errno.EOPNOTSUPP, "it does not count what a container gets (Linux 6.7 does)")


def read_map(channel: Channel, tunnel: int) -> list[tuple[Mac, int]]:
    """Return which MACs are sent from *tunnel* to which port, by its index.

    Raises Refused when the filters cannot be listed, another OSError when the map cannot be read.
    """
    program = _program(channel, tunnel)
    if program is None:
        return []
    with contextlib.closing(Rows.of(program)) as rows:
        return rows.dump()


def lead(channel: Channel, tunnel: int, mac: Mac, port: int) -> None:
    """Send frames for *mac* from *tunnel* into the container behind *port*; raise OSError."""
    program = _program(channel, tunnel)
    with contextlib.closing(_install(channel, tunnel) if program is None else Rows.of(program)) as rows:
        rows.delete(mac)  # if the next step fails, the bridge is better than a port that is gone
        rows.put(mac, port)


def lead_no_more(channel: Channel, tunnel: int, mac: Mac) -> None:
    """Send frames for *mac* over the bridge again. Raises OSError."""
    program = _program(channel, tunnel)
    if program is not None:
        with contextlib.closing(Rows.of(program)) as rows:
            rows.delete(mac)


def remove(channel: Channel, tunnel: int) -> None:
    """Send all frames over the bridge again: remove the filter. Raises OSError."""
    if _program(channel, tunnel) is not None:
        head = _TCMSG.pack(0, tunnel, _HANDLE, _INGRESS, _INFO)
        channel.do(Request(nl.RTM_DELTFILTER, 0, head + attribute(nl.TCA_KIND, b"bpf\0")))


def _program(channel: Channel, tunnel: int) -> int | None:
    """Return the id of the program of our filter; None when there is no such filter."""
    try:
        filters = channel.dump(nl.RTM_GETTFILTER, _TCMSG.pack(0, tunnel, 0, _INGRESS, 0))
    except Refused as refused:
        if refused.errno in _NONE:
            return None
        raise
    for data in filters:
        _, _, handle, _, info = _TCMSG.unpack_from(data)
        options = attributes(attributes(data, _TCMSG.size).get(nl.TCA_OPTIONS, b""))
        ours = options.get(nl.TCA_BPF_NAME, b"").rstrip(b"\0") == _OUR_NAME and nl.TCA_BPF_ID in options
        if (handle, info) == (_HANDLE, _INFO) and ours:
            return int.from_bytes(options[nl.TCA_BPF_ID], sys.byteorder)
    return None


def _install(channel: Channel, tunnel: int) -> Rows:
    """Make map, program and filter. The filter keeps the other two alive; without it they end with us."""
    rows = Rows.new()
    try:
        program = rows.load()
        try:
            _attach(channel, tunnel, program)
        finally:
            os.close(program)
    except OSError:
        rows.close()
        raise
    return rows


def _attach(channel: Channel, tunnel: int, program: int) -> None:
    qdisc = _TCMSG.pack(0, tunnel, _CLSACT_HANDLE, nl.TC_H_CLSACT, 0) + attribute(nl.TCA_KIND, b"clsact\0")
    (refused,) = channel.attempt([Request(nl.RTM_NEWQDISC, _NEW, qdisc)])
    if refused and refused.errno != errno.EEXIST:
        raise refused
    options = attribute(nl.TCA_BPF_FD, struct.pack("=I", program))
    options += attribute(nl.TCA_BPF_NAME, _OUR_NAME + b"\0")
    options += attribute(nl.TCA_BPF_FLAGS, struct.pack("=I", nl.TCA_BPF_FLAG_ACT_DIRECT))
    head = _TCMSG.pack(0, tunnel, _HANDLE, _INGRESS, _INFO)
    body = head + attribute(nl.TCA_KIND, b"bpf\0") + attribute(nl.TCA_OPTIONS, options)
    channel.do(Request(nl.RTM_NEWTFILTER, _NEW, body))


def _nowhere(stack: contextlib.ExitStack) -> int:
    space = netns.create()
    stack.callback(os.close, space)
    return space


def _index(channel: Channel, name: str) -> int:
    found = links.link(channel, name)
    if found is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return found.index


def _send() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.bind(("lo", 0))
        mac = octets(_MAC)
        for _ in range(_FRAMES):
            opened.send(mac + mac + struct.pack("!H46x", nl.ETH_P_802_EX1))


def _are_counted() -> bool:
    """Tell whether most of the frames are: more than the kernel sends there of its own accord."""
    for _ in range(_LOOKS):
        rows = [line.split() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()]
        if sum(int(row[2]) for row in rows if row[0] == f"{_PEER}:") > _FRAMES // 2:
            return True
        time.sleep(_PAUSE)
    return False
