"""Ends TCP connections of a namespace's own sockets (linux/sock_diag.h, linux/inet_diag.h; ss --kill).

Who writes to an address that nobody has any more would learn of it after minutes, who only reads never.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from driver.kernel.balancers import numbers as nf
from driver.kernel.netlink.socket import Channel, Request

_QUESTION: Final = struct.Struct("=BBBxI")
"""The beginning of inet_diag_req_v2: family, protocol, extensions, states."""
_SOCKET: Final = struct.Struct("!2s2s4s12x4s12xIII")
"""What names one (inet_diag_sockid): ports, addresses, device, cookie."""
_ANY_STATE: Final = 0xFFFFFFFF
_FOUND: Final = slice(4, 4 + _SOCKET.size)
"""Where an answer (inet_diag_msg) names the socket; family and state come before."""


class Ends(NamedTuple):
    """Both ends of an IPv4 connection as its client sees them, in network order."""

    client: bytes
    client_port: bytes
    server: bytes
    server_port: bytes


def destroy(channel: Channel, connections: Sequence[Ends]) -> None:
    """End those *connections* that begin in the namespace: their programs get ECONNABORTED.

    Others, which are forwarded, are passed over. Raises OSError: EOPNOTSUPP for a kernel without
    CONFIG_INET_DIAG_DESTROY.
    """
    answers = channel.ask_all([_about(nf.SOCK_DIAG_BY_FAMILY, _named(one)) for one in connections])
    # For a connection that is not here, the kernel finds who listens at the client's port.
    found = [answer for answer in answers if answer and answer[1] != nf.TCP_LISTEN]
    ended = channel.attempt([_about(nf.SOCK_DESTROY, answer[_FOUND], answer[0]) for answer in found])
    for refusal in ended:
        if refusal and refusal.errno != errno.ENOENT:
            raise refusal


def _about(kind: int, name: bytes, family: int = socket.AF_INET) -> Request:
    return Request(kind, 0, _QUESTION.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE) + name)


def _named(ends: Ends) -> bytes:
    ports_and_addresses = (ends.client_port, ends.server_port, ends.client, ends.server)
    return _SOCKET.pack(*ports_and_addresses, 0, nf.INET_DIAG_NOCOOKIE, nf.INET_DIAG_NOCOOKIE)
