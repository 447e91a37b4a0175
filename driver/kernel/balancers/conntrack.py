"""Forgets connections that should go elsewhere now (linux/netfilter/nfnetlink_conntrack.h).

A TCP connection ends with its backend, and the next one goes elsewhere. But datagrams from the same port to
the same address are one connection for the kernel, for as long as they come: they would go to a dead
backend for ever, or nowhere if they began before the container had its table. So would the repeated SYN of a
connection that is being made.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping
from typing import Final

from driver.kernel.balancers import numbers as nf
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Channel, Request, attribute, attributes
from driver.wish.values import Address

_GET, _DELETE, _GET_STATISTICS = (
    nf.NFNL_SUBSYS_CTNETLINK << 8 | message
    for message in (nf.IPCTNL_MSG_CT_GET, nf.IPCTNL_MSG_CT_DELETE, nf.IPCTNL_MSG_CT_GET_STATS)
)
_IP = struct.pack("!BBH", socket.AF_INET, 0, 0)
_FEW: Final = 8

Gone = Mapping[Address, Collection[Address]]
"""By virtual address, where stale connections lead: to the address itself, before it was served."""


def forget(channel: Channel, gone: Gone) -> int:
    """Drop what leads to those *gone*, except established TCP; return how many. Raises OSError."""
    if _count(channel) == 0:
        return 0  # the kernel would look through the connections of all namespaces: ten milliseconds
    wanted = {(vip.packed, backend.packed) for vip, backends in gone.items() for backend in backends}
    few = [vip.packed for vip in gone] if len(gone) <= _FEW else [b""]
    entries = [
        attributes(data, len(_IP))
        for data in channel.dump(_GET, _IP)
        if any(vip in data for vip in few)  # spares decoding thousands of others
    ]
    doomed = [entry for entry in entries if _ends(entry) in wanted and not _is_established(entry)]
    channel.attempt([Request(_DELETE, 0, _named(entry)) for entry in doomed])
    return len(doomed)


def _count(channel: Channel) -> int:
    """Return how many connections the namespace has."""
    answer = channel.ask(_GET_STATISTICS, _IP)
    values = attributes(answer, len(_IP)) if answer else {}
    return int.from_bytes(values.get(nf.CTA_STATS_GLOBAL_ENTRIES, b""), "big")


def _ends(entry: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Return where the client sent to, and who answers."""
    there = attributes(attributes(entry[nf.CTA_TUPLE_ORIG])[nf.CTA_TUPLE_IP])
    back = attributes(attributes(entry[nf.CTA_TUPLE_REPLY])[nf.CTA_TUPLE_IP])
    return there.get(nf.CTA_IP_V4_DST, b""), back.get(nf.CTA_IP_V4_SRC, b"")


def _is_established(entry: Mapping[int, bytes]) -> bool:
    protocol = attributes(attributes(entry[nf.CTA_TUPLE_ORIG])[nf.CTA_TUPLE_PROTO])[nf.CTA_PROTO_NUM]
    if protocol != bytes([socket.IPPROTO_TCP]):
        return False
    info = attributes(attributes(entry.get(nf.CTA_PROTOINFO, b"")).get(nf.CTA_PROTOINFO_TCP, b""))
    return info.get(nf.CTA_PROTOINFO_TCP_STATE) != bytes([nf.TCP_CONNTRACK_SYN_SENT])


def _named(entry: Mapping[int, bytes]) -> bytes:
    ends = attribute(nf.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, entry[nf.CTA_TUPLE_ORIG])
    return _IP + ends + attribute(nf.CTA_ID, entry[nf.CTA_ID])
