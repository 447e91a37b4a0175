"""The few intricate requests: devices and addresses, built by pyroute2. The only importer of it."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from driver.kernel.netlink import links
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import HEADER, Request, attribute
from driver.wish.values import Address, Interface, Mac

_MTU_OF_NOBODY = 65535

_Attributes = list[tuple[str, Any]]


class ContainerEnd(NamedTuple):
    """The other end of a veth pair, as it is created."""

    name: str
    mac: Mac
    mtu: int
    namespace: int
    """A descriptor."""


def version(local: Address | None) -> int:
    """Return the address family that a tunnel with this local address speaks."""
    return local.version if local else 4


def deleted(index: int) -> Request:
    """Delete a device."""
    return Request(nl.RTM_DELLINK, 0, _link(index, None, []))


def raised(index: int) -> Request:
    """Set a device up."""
    return _changed(index, nl.IFF_UP, [])


def released(index: int) -> Request:
    """Take a device out of its bridge; its settings as a port are gone then."""
    return _changed(index, None, [("IFLA_MASTER", 0)])


def resized(index: int, mtu: int) -> Request:
    """Give a device another MTU."""
    return _changed(index, None, [("IFLA_MTU", mtu)])


def plugged(index: int, mtu: int, alias: str, bridge: int) -> Request:
    """Give a device its MTU and alias, and make it a port of *bridge*."""
    return _changed(index, None, [("IFLA_MTU", mtu), ("IFLA_IFALIAS", alias), ("IFLA_MASTER", bridge)])


def new_bridge(name: str, mac: Mac) -> Request:
    """Make a bridge."""
    # A bridge follows the smallest MTU of its ports until its own has been changed once.
    settings = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MTU", _MTU_OF_NOBODY)]
    return _new([*settings, _bridge_kind(("IFLA_BR_FORWARD_DELAY", 0))])


def bridge(index: int, mac: Mac, mtu: int, alias: str) -> Request:
    """Give a bridge all its settings, and set it up."""
    settings: _Attributes = [
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MASTER", 0),
        _bridge_kind(),
    ]
    return Request(nl.RTM_NEWLINK, 0, _link(index, nl.IFF_UP, settings) + _forwarding())


def new_vxlan(name: str, vni: int, port: int, local: Address | None, namespace: int) -> Request:
    """Make a VXLAN device in *namespace*, a descriptor."""
    first, last = links.SOURCE_PORTS[version(local)]
    kind = _linkinfo(
        "vxlan",
        [
            ("IFLA_VXLAN_ID", vni),
            ("IFLA_VXLAN_PORT", port),
            ("IFLA_VXLAN_PORT_RANGE", {"low": first, "high": last}),
            ("IFLA_VXLAN_PROXY", 1),
            # Zero over IPv4 (RFC 7348 section 5). Over IPv6 the checksum stays real, as RFC 6935 has
            # it, and the receiving flags stay those of Docker's overlay, to share one UDP port with it.
            ("IFLA_VXLAN_UDP_CSUM", 0),
            *_movable(local),
        ],
    )
    return _new([("IFLA_IFNAME", name), ("IFLA_NET_NS_FD", namespace), kind])


def moved(index: int, local: Address | None) -> Request:
    """Change what can be changed on a VXLAN device."""
    return _changed(index, None, [_linkinfo("vxlan", _movable(local))])


def new_pair(name: str, mtu: int, peer: ContainerEnd) -> Request:
    """Make a veth pair."""
    other: _Attributes = [
        ("IFLA_IFNAME", peer.name),
        ("IFLA_ADDRESS", peer.mac),
        ("IFLA_MTU", peer.mtu),
        ("IFLA_NET_NS_FD", peer.namespace),
    ]
    kind = _linkinfo("veth", [("VETH_INFO_PEER", {"attrs": other})])
    return _new([("IFLA_IFNAME", name), ("IFLA_MTU", mtu), kind])


def new_address(index: int, interface: Interface) -> Request:
    """Give a device an address."""
    return Request(nl.RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _address(index, interface))


def deleted_address(index: int, interface: Interface) -> Request:
    """Take an address from a device."""
    return Request(nl.RTM_DELADDR, 0, _address(index, interface))


def _new(values: _Attributes) -> Request:
    return Request(nl.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, _link(0, None, values))


def _changed(index: int, flags: int | None, values: _Attributes) -> Request:
    return Request(nl.RTM_NEWLINK, 0, _link(index, flags, values))


def _link(index: int, flags: int | None, values: _Attributes) -> bytes:
    message = ifinfmsg()
    message["index"] = index
    if flags is not None:
        message["flags"], message["change"] = flags, nl.IFF_UP
    message["attrs"] = values
    return _body(message)


def _address(index: int, interface: Interface) -> bytes:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["prefixlen"] = interface.network.prefixlen
    message["flags"] = 0 if interface.version == 4 else nl.IFA_F_NODAD
    message["scope"] = nl.RT_SCOPE_LINK if interface.is_link_local else nl.RT_SCOPE_UNIVERSE
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
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


def _movable(local: Address | None) -> _Attributes:
    name = "IFLA_VXLAN_LOCAL6" if version(local) == 6 else "IFLA_VXLAN_LOCAL"
    return [("IFLA_VXLAN_LEARNING", 0), (name, str(local or "0.0.0.0"))]  # noqa: S104


def _forwarding() -> bytes:
    # By hand: pyroute2 takes IFLA_INET_CONF for a structure, and would send one.
    on = attribute(nl.IPV4_DEVCONF_FORWARDING, struct.pack("=I", 1))
    return attribute(nl.IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(nl.IFLA_INET_CONF, on)))
