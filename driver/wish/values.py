"""Value types of the overlay: parsed once at the edge, never strings inside."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, NewType, TypeAlias

from driver.wish.errors import BadRequest

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Prefix: TypeAlias = IPv4Network | IPv6Network

NetworkId = NewType("NetworkId", str)
EndpointId = NewType("EndpointId", str)
NodeId = NewType("NodeId", str)
Mac = NewType("Mac", str)
"""Lower-case, colon-separated, 17 characters."""
Vni = NewType("Vni", int)
"""VXLAN network identifier, 24 bits (RFC 7348 section 5)."""


class _Host(StrEnum):
    HOST = "the host"


HOST: Final = _Host.HOST
"""Stands for the host itself beside its networks: as a scope of the wish, and as a place in the kernel."""
Scope: TypeAlias = NetworkId | _Host
"""What a part of the wish is about: a network, or the host."""

MAX_VNI = (1 << 24) - 1
VXLAN_PORT = 4789
"""IANA's UDP port for VXLAN (RFC 7348 section 5)."""

TUNNEL_MTU = 65485
"""Of every VXLAN device and every bridge end of a veth pair, whatever the containers have (ADR 7).

The most that a tunnel can carry: of an outer IPv4 packet's 65535 bytes, 50 are overhead.
"""

IPV6_MTU = 1280
"""Bytes: the least MTU of a link with IPv6 (RFC 8200 section 5); with less the kernel has none on it."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ENGINE_ID = 64
"""Characters of the ids that an engine generates (moby pkg/stringid)."""
_ID = re.compile(r"[0-9a-zA-Z]{1,128}")


def parse_mac(field: str, text: str) -> Mac:
    """Read a unicast MAC address; raise BadRequest naming *field* otherwise."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise BadRequest.field(field, text, "give a unicast MAC address such as 02:42:0a:00:00:05")
    return Mac(mac)


def parse_id(field: str, text: str) -> str:
    """Read an engine object id: 64 hexadecimal digits, or 25 base-36 characters in a Swarm."""
    if not _ID.fullmatch(text):
        raise BadRequest.field(field, text, "the engine sends letters and digits only")
    return text


def is_of_one_host(network: NetworkId) -> bool:
    """Tell whether an engine made a network by itself, from its id; a Swarm's managers give shorter ones."""
    return len(network) == _ENGINE_ID


def is_of_a_host(address: Address) -> bool:
    """Tell whether other hosts can send to *address*: 127.0.0.1, ::1 and the like lead to themselves."""
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def mac_of(address: Address) -> Mac:
    """Derive an endpoint's MAC as Docker does: 02:42 and the IPv4 address (moby netutils.GenerateMACFromIP).

    An IPv6-only endpoint gets a digest of its address: all bits but the two that make a MAC address unicast
    and locally administered (IEEE 802c-2017), since of two with one MAC only one can be reached.
    """
    if isinstance(address, IPv4Address):
        return _mac(b"\x02\x42" + address.packed)
    first, *rest = hashlib.sha256(address.packed).digest()[:6]
    return _mac(bytes([first & 0b1111_1100 | 0b10, *rest]))


def octets(mac: Mac) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def bridge_mac(seed: str) -> Mac:
    """A bridge's own MAC: stable for one host and segment, different on every host.

    Two hosts with one bridge MAC would each see the other's routed frames as its own.
    """
    return _mac(b"\x02\x44" + hashlib.sha256(seed.encode()).digest()[:4])


def _mac(packed: bytes) -> Mac:
    return Mac(packed.hex(":"))
