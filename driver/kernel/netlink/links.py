"""Devices as the kernel lists them, and which of ours they are.

Decoded with struct: a whole namespace is read before each change, and pyroute2 takes 200
microseconds a device for its 38 attributes, of which a dozen matter here.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface

from driver.kernel.names import ALIAS_PREFIX
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Channel, Refused, Request, attribute, attributes
from driver.wish.values import Address, Interface, Mac, Vni, octets

SOURCE_PORTS = {4: (49152, 65535), 6: (49152, 65534)}
"""UDP source ports of VXLAN: the dynamic range (RFC 7348 section 5).

By the family of the outer packets, which the kernel does not tell of a tunnel that is bound to no address.
"""

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_SKIP_STATS = struct.pack("=I", nl.RTEXT_FILTER_SKIP_STATS)
_ANY = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(nl.IFLA_EXT_MASK, _SKIP_STATS)
"""A question for devices, without their statistics."""
_DOOMED = struct.pack("=I", 0x70796F76)
#: A bridge's other settings do not matter, and its timers never stand still.
_BR_ZERO = (nl.IFLA_BR_STP_STATE, nl.IFLA_BR_MCAST_SNOOPING)
#: Settings that are one, or zero, on a new port of a bridge.
_PORT_ONE = (
    nl.IFLA_BRPORT_LEARNING,
    nl.IFLA_BRPORT_UNICAST_FLOOD,
    nl.IFLA_BRPORT_MCAST_FLOOD,
    nl.IFLA_BRPORT_BCAST_FLOOD,
)
_PORT_ZERO = (
    nl.IFLA_BRPORT_MODE,  # hairpin
    nl.IFLA_BRPORT_GUARD,
    nl.IFLA_BRPORT_PROTECT,
    nl.IFLA_BRPORT_FAST_LEAVE,
    nl.IFLA_BRPORT_PROXYARP,
    nl.IFLA_BRPORT_PROXYARP_WIFI,
    nl.IFLA_BRPORT_MCAST_TO_UCAST,
    nl.IFLA_BRPORT_VLAN_TUNNEL,
    nl.IFLA_BRPORT_GROUP_FWD_MASK,
    nl.IFLA_BRPORT_NEIGH_SUPPRESS,
    nl.IFLA_BRPORT_ISOLATED,
    nl.IFLA_BRPORT_LOCKED,
    nl.IFLA_BRPORT_MAB,
)
#: Settings that are zero on our VXLAN devices.
_VX_ZERO = (
    nl.IFLA_VXLAN_GROUP,
    nl.IFLA_VXLAN_LINK,
    nl.IFLA_VXLAN_TTL,
    nl.IFLA_VXLAN_TOS,
    nl.IFLA_VXLAN_LIMIT,
    nl.IFLA_VXLAN_RSC,
    nl.IFLA_VXLAN_L2MISS,
    nl.IFLA_VXLAN_L3MISS,
    nl.IFLA_VXLAN_GROUP6,
    nl.IFLA_VXLAN_UDP_CSUM,
    nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX,
    nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX,
    nl.IFLA_VXLAN_REMCSUM_TX,
    nl.IFLA_VXLAN_REMCSUM_RX,
    nl.IFLA_VXLAN_COLLECT_METADATA,
    nl.IFLA_VXLAN_LABEL,
    nl.IFLA_VXLAN_TTL_INHERIT,
    nl.IFLA_VXLAN_DF,
)
#: Settings that only exist when they are on.
_VX_ABSENT = (nl.IFLA_VXLAN_GBP, nl.IFLA_VXLAN_REMCSUM_NOPARTIAL, nl.IFLA_VXLAN_GPE)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device, ours or not."""

    index: int
    name: str
    kind: str
    """As in "ip link add type KIND"; empty for hardware."""
    flags: int
    mtu: int
    master: int
    mac: Mac
    alias: str
    data: Mapping[int, bytes]
    """The attributes of its kind."""
    forwarding: bool
    """IPv4 and, where the kernel has it, IPv6."""
    plain: bool
    """Whether it has, as a port of a bridge, the settings of a new one."""

    @property
    def ours(self) -> bool:
        """Whether it bears our mark."""
        return self.alias.startswith(ALIAS_PREFIX)

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & nl.IFF_UP)

    @property
    def vni(self) -> Vni:
        """The VNI of a VXLAN device, 0 for others and for those that have none."""
        return Vni(_number(self.data, nl.IFLA_VXLAN_ID)) if self.kind == "vxlan" else Vni(0)

    @property
    def udp_port(self) -> int:
        """The UDP port of a VXLAN device."""
        return int.from_bytes(self.data.get(nl.IFLA_VXLAN_PORT, b""), "big")

    @property
    def local(self) -> Address | None:
        """The outer source address of a VXLAN device: None, or :: over IPv6, when the route decides."""
        if nl.IFLA_VXLAN_LOCAL in self.data:
            return IPv4Address(self.data[nl.IFLA_VXLAN_LOCAL])
        if nl.IFLA_VXLAN_LOCAL6 in self.data:
            return IPv6Address(self.data[nl.IFLA_VXLAN_LOCAL6])
        return IPv6Address(0) if self.source_ports == SOURCE_PORTS[6] else None

    @property
    def source_ports(self) -> tuple[int, int]:
        """The first and the last UDP source port of a VXLAN device."""
        first, last = struct.unpack("!HH", self.data.get(nl.IFLA_VXLAN_PORT_RANGE, bytes(4)))
        return first, last


@dataclass(frozen=True, slots=True)
class Assigned:
    """An address on a device."""

    index: int
    interface: Interface
    is_global: bool


def links(channel: Channel) -> dict[int, Link]:
    """Return all devices of a namespace by index; raise OSError."""
    found = map(parse, channel.dump(nl.RTM_GETLINK, _ANY))
    return {link.index: link for link in found}


def tunnels(channel: Channel, bridge: int) -> list[int]:
    """Return the VXLAN devices that are ports of *bridge*; raise OSError."""
    ports = attribute(nl.IFLA_MASTER, struct.pack("=I", bridge))
    kind = attribute(nl.IFLA_LINKINFO, attribute(nl.IFLA_INFO_KIND, b"vxlan\0"))
    return [index_of(data) for data in channel.dump(nl.RTM_GETLINK, _ANY + ports + kind)]


def link(channel: Channel, name: str) -> Link | None:
    """Return the device *name*, or None; raise OSError."""
    answer = channel.ask(nl.RTM_GETLINK, _ANY + attribute(nl.IFLA_IFNAME, name.encode() + b"\0"))
    return parse(answer) if answer else None


def signature(name: str, alias: str) -> Request:
    """Return the message that gives the device *name* its alias."""
    named = attribute(nl.IFLA_IFNAME, name.encode() + b"\0") + attribute(nl.IFLA_IFALIAS, alias.encode())
    return Request(nl.RTM_NEWLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + named)


def rename(channel: Channel, name: str, new: str) -> None:
    """Rename the device *name*; it is down afterwards, as kernels before 6.2 require. Raises OSError."""
    found = link(channel, name)
    if found is not None:
        down = _IFINFO.pack(0, 0, found.index, 0, nl.IFF_UP)
        named = _IFINFO.pack(0, 0, found.index, 0, 0) + attribute(nl.IFLA_IFNAME, new.encode() + b"\0")
        channel.do(Request(nl.RTM_NEWLINK, 0, down), Request(nl.RTM_NEWLINK, 0, named))


def remove(channel: Channel, names: Sequence[str]) -> list[Refused | None]:
    """Delete devices together; return for each None or why not. Raises OSError when none could be.

    The kernel waits 15 to 45 ms for its readers when a device is deleted, but once for a group.
    """
    nobody = _IFINFO.pack(0, 0, 0, 0, 0)
    group = attribute(nl.IFLA_GROUP, _DOOMED)
    marks = [nobody + attribute(nl.IFLA_IFNAME, name.encode() + b"\0") + group for name in names]
    results = channel.attempt([Request(nl.RTM_NEWLINK, 0, mark) for mark in marks])
    if None in results:
        channel.do(Request(nl.RTM_DELLINK, 0, nobody + group))
    return results


def bridge_is_sound(found: Link) -> bool:
    """Tell whether a bridge is up, forwards, and has no setting that ours have not."""
    filters = any(_number(found.data, kind) for kind in _BR_ZERO)
    return found.up and found.forwarding and not filters and not found.master


def tunnel_is_sound(found: Link) -> bool:
    """Tell whether a VXLAN device has the fixed settings that ours have; they cannot be changed later."""
    data = found.data
    if not _number(data, nl.IFLA_VXLAN_PROXY) or any(kind in data for kind in _VX_ABSENT):
        return False
    if found.source_ports not in SOURCE_PORTS.values():
        return False
    return not any(_number(data, kind) for kind in _VX_ZERO)


def learns(found: Link) -> bool:
    """Tell whether a VXLAN device learns addresses from frames; ours are told."""
    return bool(_number(found.data, nl.IFLA_VXLAN_LEARNING))


def addresses(channel: Channel) -> list[Assigned]:
    """Return the addresses of all devices of a namespace; raise OSError."""
    found = []
    for data in channel.dump(nl.RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        _, length, _, scope, index = _IFADDR.unpack_from(data)
        values = attributes(data, _IFADDR.size)
        packed = values.get(nl.IFA_LOCAL) or values.get(nl.IFA_ADDRESS)
        if packed:
            found.append(Assigned(index, ip_interface((packed, length)), scope == nl.RT_SCOPE_UNIVERSE))
    return found


def cannot_resolve(index: int, assigned: Sequence[Assigned]) -> bool:
    """Tell whether a device has IPv6 addresses but no link-local one.

    When it forwards, it asks for neighbours from that one, and without it not at all.
    """
    six = [a.interface for a in assigned if a.index == index and a.interface.version == 6]
    return bool(six) and not any(interface.is_link_local for interface in six)


def link_local(mac: Mac) -> IPv6Interface:
    """Derive the link-local address of a MAC (RFC 4291, appendix A)."""
    first, *rest = octets(mac)
    suffix = bytes([first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]])
    return IPv6Interface((b"\xfe\x80" + bytes(6) + suffix, 64))


def index_of(data: bytes) -> int:
    """Return which device a link message is about."""
    _, _, index, _, _ = _IFINFO.unpack_from(data)
    return int(index)


def address_index(data: bytes) -> int:
    """Return which device an address message is about."""
    return int(_IFADDR.unpack_from(data)[4])


def netconf_index(data: bytes) -> int:
    """Return which device's settings a message is about; below zero: those of all devices, or of new ones."""
    return int.from_bytes(attributes(data, 4).get(nl.NETCONFA_IFINDEX, b""), sys.byteorder, signed=True)


def is_bridge_ports(data: bytes) -> bool:
    """Tell whether a link message is a bridge's, about a port of it."""
    return data[0] == nl.AF_BRIDGE


def port_is_sound(data: bytes) -> bool:
    """Tell whether the port that a bridge's message is about has the settings of a new one."""
    return _is_plain(attributes(data, _IFINFO.size).get(nl.IFLA_PROTINFO, b""))


def parse(data: bytes) -> Link:
    """Decode a link message."""
    _, _, index, flags, _ = _IFINFO.unpack_from(data)
    values = attributes(data, _IFINFO.size)
    info = attributes(values.get(nl.IFLA_LINKINFO, b""))
    kind = _text(info.get(nl.IFLA_INFO_KIND, b""))
    settings = attributes(info.get(nl.IFLA_INFO_DATA, b""))
    return Link(
        index,
        _text(values.get(nl.IFLA_IFNAME, b"")),
        kind,
        flags & (nl.IFF_UP | nl.IFF_LOOPBACK),
        _number(values, nl.IFLA_MTU),
        _number(values, nl.IFLA_MASTER),
        Mac(values.get(nl.IFLA_ADDRESS, b"").hex(":")),
        _text(values.get(nl.IFLA_IFALIAS, b"")),
        {k: v for k, v in settings.items() if k in _BR_ZERO} if kind == "bridge" else settings,
        _forwards(attributes(values.get(nl.IFLA_AF_SPEC, b""))),
        _is_plain(info.get(nl.IFLA_INFO_SLAVE_DATA, b"")),
    )


@lru_cache(maxsize=1024)
def _is_plain(port: bytes) -> bool:
    found = attributes(port)
    on = all(_number(found, kind) for kind in _PORT_ONE if kind in found)
    return on and not any(_number(found, kind) for kind in _PORT_ZERO)


def _forwards(families: Mapping[int, bytes]) -> bool:
    # In each family's array of settings "forwarding" comes first (linux/ip.h, linux/ipv6.h).
    ipv4 = attributes(families.get(socket.AF_INET, b"")).get(nl.IFLA_INET_CONF, b"")
    ipv6 = attributes(families.get(socket.AF_INET6, b"")).get(nl.IFLA_INET6_CONF)
    return any(ipv4[:4]) and (ipv6 is None or any(ipv6[:4]))


def _number(values: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
