"""Forgets connections that should go elsewhere now (linux/netfilter/nfnetlink_conntrack.h).

A TCP connection ends with its backend, and the next one goes elsewhere. But datagrams from the same port to
the same address are one connection for the kernel, for as long as they come: they would go to a dead
backend for ever, or nowhere if they began before the container had its table. So would the repeated SYN of a
connection that is being made.

A backend whose host is gone ends nothing. Once its connections are forgotten, what a client sends goes to
another backend, which resets it; or to none, where it is refused.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers.sockets import Ends
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


@dataclass(frozen=True, slots=True)
class Stale:
    """What connections should not go on as they are."""

    left: Gone = field(default_factory=dict)
    """Backends that get no more connections; what is established stays, for they may be on their way out."""
    dead: frozenset[Address] = frozenset()
    """Backends that nobody has any more: nothing of theirs stays."""

    def __or__(self, other: Stale) -> Stale:
        """Return both together."""
        return Stale({**self.left, **other.left}, self.dead | other.dead)


def forget(channel: Channel, stale: Stale) -> list[Ends]:
    """Drop the *stale* connections; return which of them were established TCP. Raises OSError."""
    if _count(channel) == 0:
        return []  # the kernel would look through the connections of all namespaces: ten milliseconds
    left = {(vip.packed, backend.packed) for vip, backends in stale.left.items() for backend in backends}
    dead = {backend.packed for backend in stale.dead}
    few = [vip.packed for vip in stale.left] + list(dead)
    entries = [
        attributes(data, len(_IP))
        for data in channel.dump(_GET, _IP)
        if len(few) > _FEW or any(address in data for address in few)  # spares decoding thousands of others
    ]
    ended = [entry for entry in entries if _leads_to(dead, entry)]
    doomed = [entry for entry in entries if _way(entry) in left and not _is_established(entry)]
    channel.attempt([Request(_DELETE, 0, _named(entry)) for entry in [*ended, *doomed]])
    return [_ends(entry) for entry in ended if _is_established(entry)]


def _count(channel: Channel) -> int:
    """Return how many connections the namespace has."""
    answer = channel.ask(_GET_STATISTICS, _IP)
    values = attributes(answer, len(_IP)) if answer else {}
    return int.from_bytes(values.get(nf.CTA_STATS_GLOBAL_ENTRIES, b""), "big")


def _way(entry: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Return where the client sent to, and who answers."""
    back = attributes(attributes(entry[nf.CTA_TUPLE_REPLY])[nf.CTA_TUPLE_IP])
    return _ends(entry).server, back.get(nf.CTA_IP_V4_SRC, b"")


def _leads_to(dead: Collection[bytes], entry: Mapping[int, bytes]) -> bool:
    """Tell whether it was translated, and to one of those *dead*."""
    asked, answers = _way(entry)
    return answers in dead and answers != asked


def _ends(entry: Mapping[int, bytes]) -> Ends:
    there = attributes(entry[nf.CTA_TUPLE_ORIG])
    addresses, ports = attributes(there[nf.CTA_TUPLE_IP]), attributes(there[nf.CTA_TUPLE_PROTO])
    return Ends(
        addresses.get(nf.CTA_IP_V4_SRC, b""),
        ports.get(nf.CTA_PROTO_SRC_PORT, b""),
        addresses.get(nf.CTA_IP_V4_DST, b""),
        ports.get(nf.CTA_PROTO_DST_PORT, b""),
    )


def _is_established(entry: Mapping[int, bytes]) -> bool:
    """Tell whether it is TCP, and more than a first packet."""
    protocol = attributes(attributes(entry[nf.CTA_TUPLE_ORIG])[nf.CTA_TUPLE_PROTO])[nf.CTA_PROTO_NUM]
    if protocol != bytes([socket.IPPROTO_TCP]):
        return False
    info = attributes(attributes(entry.get(nf.CTA_PROTOINFO, b"")).get(nf.CTA_PROTOINFO_TCP, b""))
    return info.get(nf.CTA_PROTOINFO_TCP_STATE) != bytes([nf.TCP_CONNTRACK_SYN_SENT])


def _named(entry: Mapping[int, bytes]) -> bytes:
    ends = attribute(nf.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, entry[nf.CTA_TUPLE_ORIG])
    return _IP + ends + attribute(nf.CTA_ID, entry[nf.CTA_ID])
