"""The few intricate messages: devices and addresses, spelled by pyroute2. The only importer of it."""

from __future__ import annotations

import socket
import struct
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from driver.kernel.netlink import links
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import HEADER, attribute
from driver.kernel.objects import Bridge, Port, Vxlan
from driver.wish.values import Address, Interface

_MTU_OF_NOBODY = 65535

_Attributes = list[tuple[str, Any]]


def version(local: Address | None) -> int:
    """Return the address family that a tunnel with this local address speaks."""
    return local.version if local else 4


def device(index: int) -> bytes:
    """Name a device, to be deleted."""
    return _link(index, None, [])


def raised(index: int) -> bytes:
    """Set a device up."""
    return _link(index, nl.IFF_UP, [])


def signed(index: int, alias: str) -> bytes:
    """Name a device ours."""
    return _link(index, None, [("IFLA_IFALIAS", alias)])


def released(index: int) -> bytes:
    """Take a device out of its bridge; what was set on it as a port is gone then."""
    return _link(index, None, [("IFLA_MASTER", 0)])


def plugged(index: int, want: Vxlan | Port, bridge: int) -> bytes:
    """Give a device its MTU and alias, and make it a port of *bridge*."""
    return _link(index, None, [("IFLA_MTU", want.mtu), ("IFLA_IFALIAS", want.alias), ("IFLA_MASTER", bridge)])


def bridge(index: int, want: Bridge) -> bytes:
    """Give a bridge all its settings, and set it up."""
    settings: _Attributes = [
        ("IFLA_ADDRESS", want.mac),
        ("IFLA_MTU", want.mtu),
        ("IFLA_IFALIAS", want.alias),
        ("IFLA_MASTER", 0),
        _bridge_kind(),
    ]
    return _link(index, nl.IFF_UP, settings) + _forwarding()


def _link(index: int, flags: int | None, values: _Attributes) -> bytes:
    message = ifinfmsg()
    message["index"] = index
    if flags is not None:
        message["flags"], message["change"] = flags, nl.IFF_UP
    message["attrs"] = values
    return _body(message)


def _body(message: Any) -> bytes:
    message.encode()
    return bytes(message.data[HEADER.size :])  # without the header, which the channel adds


def _linkinfo(kind: str, values: _Attributes) -> tuple[str, Any]:
    data = ("IFLA_INFO_DATA", {"attrs": values})
    return ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), data]})


def _bridge_kind(*more: tuple[str, int]) -> tuple[str, Any]:
    # Without snooping a multicast frame goes to every port, the tunnel included.
    return _linkinfo("bridge", [("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0), *more])


def new_bridge(want: Bridge) -> bytes:
    """Make a bridge."""
    # A bridge follows the smallest MTU of its ports until its own was changed once.
    settings = [("IFLA_IFNAME", want.name), ("IFLA_ADDRESS", want.mac), ("IFLA_MTU", _MTU_OF_NOBODY)]
    return _link(0, None, [*settings, _bridge_kind(("IFLA_BR_FORWARD_DELAY", 0))])


def _forwarding() -> bytes:
    # By hand: pyroute2 takes IFLA_INET_CONF for a structure, and would send one.
    on = attribute(nl.IPV4_DEVCONF_FORWARDING, struct.pack("=I", 1))
    return attribute(nl.IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(nl.IFLA_INET_CONF, on)))


def new_vxlan(want: Vxlan, namespace: int) -> bytes:
    """Make a VXLAN device in *namespace*, a descriptor."""
    first, last = links.SOURCE_PORTS
    kind = _linkinfo(
        "vxlan",
        [
            ("IFLA_VXLAN_ID", want.vni),
            ("IFLA_VXLAN_PORT", want.port),
            ("IFLA_VXLAN_PORT_RANGE", {"low": first, "high": last}),
            ("IFLA_VXLAN_PROXY", 1),
            # Zero over IPv4 (RFC 7348 section 5). Over IPv6 the checksum stays real, as RFC 6935 has
            # it, and the receiving flags stay those of Docker's overlay, to share one UDP port with it.
            ("IFLA_VXLAN_UDP_CSUM", 0),
            *_movable(want),
        ],
    )
    return _link(0, None, [("IFLA_IFNAME", want.name), ("IFLA_NET_NS_FD", namespace), kind])


def moved(index: int, want: Vxlan) -> bytes:
    """Change what can be changed of a VXLAN device."""
    return _link(index, None, [_linkinfo("vxlan", _movable(want))])


def _movable(want: Vxlan) -> _Attributes:
    local = "IFLA_VXLAN_LOCAL6" if version(want.local) == 6 else "IFLA_VXLAN_LOCAL"
    return [("IFLA_VXLAN_LEARNING", 0), (local, str(want.local or "0.0.0.0"))]  # noqa: S104


def new_pair(want: Port, host: int) -> bytes:
    """Make a veth pair, its container end in *host*, a descriptor."""
    peer: _Attributes = [
        ("IFLA_IFNAME", want.peer),
        ("IFLA_ADDRESS", want.peer_mac),
        ("IFLA_MTU", want.peer_mtu),
        ("IFLA_NET_NS_FD", host),
    ]
    kind = _linkinfo("veth", [("VETH_INFO_PEER", {"attrs": peer})])
    return _link(0, None, [("IFLA_IFNAME", want.name), ("IFLA_MTU", want.mtu), kind])


def address(index: int, interface: Interface) -> bytes:
    """Name an address of a device."""
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["prefixlen"] = interface.network.prefixlen
    message["flags"] = 0 if interface.version == 4 else nl.IFA_F_NODAD
    message["scope"] = nl.RT_SCOPE_LINK if interface.is_link_local else nl.RT_SCOPE_UNIVERSE
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    return _body(message)
