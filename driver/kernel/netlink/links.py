"""Devices as the kernel lists them, and what of ours they are.

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
from driver.kernel.netlink.socket import Channel, Refused, Request, attribute, attributes
from driver.wish.values import Address, Interface, Mac, Vni, octets

SOURCE_PORTS = (49152, 65535)
"""UDP source ports of VXLAN: the dynamic range (RFC 7348 section 5)."""

_NEWLINK, _DELLINK, _GETLINK, _GETADDR = 16, 17, 18, 22
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ADDRESS, _IFNAME, _MTU, _MASTER, _PROTINFO, _LINKINFO, _IFALIAS = 1, 3, 4, 10, 12, 18, 20
_AF_SPEC, _GROUP, _EXT_MASK = 26, 27, 29
_SKIP_STATS = struct.pack("=I", 1 << 3)
_ANY = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_EXT_MASK, _SKIP_STATS)
"""A question for devices, without their statistics."""
_DOOMED = struct.pack("=I", 0x70796F76)
_INFO_KIND, _INFO_DATA, _INFO_PORT = 1, 2, 5
_IFF_UP, IFF_LOOPBACK = 0x1, 0x8
_AF_BRIDGE = 7
_BR_STP, _BR_SNOOPING = 5, 23
#: Of a bridge's settings the others do not matter, and its timers never stand still.
_BR_ZERO = (_BR_STP, _BR_SNOOPING)
#: Settings of a bridge's port that a new one has as one: learning; flooding of unknown addresses,
#: of multicast and of broadcast. And as zero: hairpin, BPDU guard, root block, fast leave, proxy
#: ARP (two), multicast to unicast, VLAN tunnel, group mask, neighbour suppression, isolation, lock, MAB.
_PORT_ONE = (8, 9, 27, 30)
_PORT_ZERO = (4, 5, 6, 7, 10, 11, 28, 29, 31, 32, 33, 39, 40)
_VX_ID, _VX_LOCAL, _VX_PORTS, _VX_PORT, _VX_LOCAL6 = 1, 4, 10, 15, 17
_VX_LEARNING, _VX_PROXY = 7, 11
#: Settings that ours have as zero. Group, device, TTL, TOS, limit; RSC, L2MISS, L3MISS, group6; UDP
#: checksum (IPv4), none (IPv6, both ways), remote checksum; metadata, flow label, TTL of the inside, DF.
_VX_ZERO = (2, 3, 5, 6, 9, 12, 13, 14, 16, 18, 19, 20, 21, 22, 25, 26, 28, 29)
#: Settings that only exist when they are on: group policy, remote checksum, generic protocol.
_VX_ABSENT = (23, 24, 27)
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


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
    """As a port of a bridge: with the settings that a new one has."""

    @property
    def ours(self) -> bool:
        """Whether it bears our mark."""
        return self.alias.startswith(ALIAS_PREFIX)

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & _IFF_UP)

    @property
    def vni(self) -> Vni:
        """The VNI of a VXLAN device, 0 for others and for those that have none."""
        return Vni(_number(self.data, _VX_ID)) if self.kind == "vxlan" else Vni(0)

    @property
    def udp_port(self) -> int:
        """The UDP port of a VXLAN device."""
        return int.from_bytes(self.data.get(_VX_PORT, b""), "big")

    @property
    def local(self) -> Address | None:
        """The outer source address of a VXLAN device."""
        if _VX_LOCAL in self.data:
            return IPv4Address(self.data[_VX_LOCAL])
        return IPv6Address(self.data[_VX_LOCAL6]) if _VX_LOCAL6 in self.data else None


@dataclass(frozen=True, slots=True)
class Assigned:
    """An address on a device."""

    index: int
    interface: Interface
    is_global: bool


def links(channel: Channel) -> dict[int, Link]:
    """Return all devices of a namespace by index; raise OSError."""
    found = map(parse, channel.dump(_GETLINK, _ANY))
    return {link.index: link for link in found}


def tunnels(channel: Channel, bridge: int) -> list[int]:
    """Return the VXLAN devices that are ports of *bridge*; raise OSError."""
    ports = attribute(_MASTER, struct.pack("=I", bridge))
    kind = attribute(_LINKINFO, attribute(_INFO_KIND, b"vxlan\0"))
    return [index_of(data) for data in channel.dump(_GETLINK, _ANY + ports + kind)]


def link(channel: Channel, name: str) -> Link | None:
    """Return the device *name*, or None; raise OSError."""
    answer = channel.ask(_GETLINK, _ANY + attribute(_IFNAME, name.encode() + b"\0"))
    return parse(answer) if answer else None


def signature(name: str, alias: str) -> Request:
    """Return the message that gives the device *name* its alias."""
    named = attribute(_IFNAME, name.encode() + b"\0") + attribute(_IFALIAS, alias.encode())
    return Request(_NEWLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + named)


def rename(channel: Channel, name: str, new: str) -> None:
    """Give the device *name* another name; it is down then, as kernels before 6.2 want. Raises OSError."""
    found = link(channel, name)
    if found is not None:
        down = _IFINFO.pack(0, 0, found.index, 0, _IFF_UP)
        named = _IFINFO.pack(0, 0, found.index, 0, 0) + attribute(_IFNAME, new.encode() + b"\0")
        channel.do(Request(_NEWLINK, 0, down), Request(_NEWLINK, 0, named))


def remove(channel: Channel, names: Sequence[str]) -> list[Refused | None]:
    """Delete devices together; return for each None or why not. Raises OSError when none could be.

    The kernel waits 15 to 45 ms for its readers when a device goes, and once for a group of them.
    """
    nobody = _IFINFO.pack(0, 0, 0, 0, 0)
    group = attribute(_GROUP, _DOOMED)
    marks = [nobody + attribute(_IFNAME, name.encode() + b"\0") + group for name in names]
    results = channel.attempt([Request(_NEWLINK, 0, mark) for mark in marks])
    if None in results:
        channel.do(Request(_DELLINK, 0, nobody + group))
    return results


def bridge_is_sound(found: Link) -> bool:
    """Tell whether a bridge is up, forwards, and has no setting that ours have not."""
    filters = any(_number(found.data, kind) for kind in _BR_ZERO)
    return found.up and found.forwarding and not filters and not found.master


def tunnel_is_sound(found: Link) -> bool:
    """Tell whether a VXLAN device has the fixed settings that ours have; they cannot be changed later."""
    data = found.data
    if not _number(data, _VX_PROXY) or any(kind in data for kind in _VX_ABSENT):
        return False
    if struct.unpack("!HH", data.get(_VX_PORTS, bytes(4))) != SOURCE_PORTS:
        return False
    return not any(_number(data, kind) for kind in _VX_ZERO)


def learns(found: Link) -> bool:
    """Tell whether a VXLAN device learns addresses from frames; ours are told."""
    return bool(_number(found.data, _VX_LEARNING))


def addresses(channel: Channel) -> list[Assigned]:
    """Return the addresses of all devices of a namespace; raise OSError."""
    found = []
    for data in channel.dump(_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        _, length, _, scope, index = _IFADDR.unpack_from(data)
        values = attributes(data, _IFADDR.size)
        packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if packed:
            found.append(Assigned(index, ip_interface((packed, length)), scope == 0))
    return found


def cannot_resolve(index: int, assigned: Sequence[Assigned]) -> bool:
    """Tell whether a device has IPv6 addresses but no link-local one.

    It asks for neighbours from that one when it forwards, and without it does not ask at all.
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
    """Return which device's settings a message is about; below zero: those of all, or of new ones."""
    return int.from_bytes(attributes(data, 4).get(1, b""), sys.byteorder, signed=True)


def is_bridge_ports(data: bytes) -> bool:
    """Tell whether a link message is a bridge's, about a port of it."""
    return data[0] == _AF_BRIDGE


def port_is_sound(data: bytes) -> bool:
    """Tell whether the port that a bridge's message is about has the settings of a new one."""
    return _is_plain(attributes(data, _IFINFO.size).get(_PROTINFO, b""))


def parse(data: bytes) -> Link:
    """Decode a link message."""
    _, _, index, flags, _ = _IFINFO.unpack_from(data)
    values = attributes(data, _IFINFO.size)
    info = attributes(values.get(_LINKINFO, b""))
    kind = _text(info.get(_INFO_KIND, b""))
    settings = attributes(info.get(_INFO_DATA, b""))
    return Link(
        index,
        _text(values.get(_IFNAME, b"")),
        kind,
        flags & (_IFF_UP | IFF_LOOPBACK),
        _number(values, _MTU),
        _number(values, _MASTER),
        Mac(values.get(_ADDRESS, b"").hex(":")),
        _text(values.get(_IFALIAS, b"")),
        {k: v for k, v in settings.items() if k in _BR_ZERO} if kind == "bridge" else settings,
        _forwards(attributes(values.get(_AF_SPEC, b""))),
        _is_plain(info.get(_INFO_PORT, b"")),
    )


@lru_cache(maxsize=1024)
def _is_plain(port: bytes) -> bool:
    found = attributes(port)
    on = all(_number(found, kind) for kind in _PORT_ONE if kind in found)
    return on and not any(_number(found, kind) for kind in _PORT_ZERO)


def _forwards(families: Mapping[int, bytes]) -> bool:
    # In each family's array of settings "forwarding" comes first (linux/ip.h, linux/ipv6.h).
    ipv4 = attributes(families.get(socket.AF_INET, b"")).get(1, b"")
    ipv6 = attributes(families.get(socket.AF_INET6, b"")).get(2)
    return any(ipv4[:4]) and (ipv6 is None or any(ipv6[:4]))


def _number(values: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
