"""The real kernel: namespaces, bridges, VXLAN devices, veth pairs, rows. The only importer of pyroute2.

pyroute2 spells the messages that are few and intricate (links, addresses); wire.py carries them,
and struct does those that are many (rows.py) or read all the time (links.py).

VXLAN devices are made through the *host's* socket right into the namespace: their outer packets
leave from where they were made, and no passing name is ever seen on the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from driver.errors import KernelError
from driver.kernel import links, netns, rows, underlay
from driver.kernel.contents import contents
from driver.kernel.links import Link
from driver.kernel.refusal import absent, failed, failures_of, foreign, refusal, subject, vni_taken
from driver.kernel.spaces import Spaces
from driver.kernel.wire import CREATE, EXCL, REPLACE, Channel, Refused, Request, attribute
from driver.model import Underlay
from driver.objects import (
    Bridge,
    BridgeAddress,
    FdbEntry,
    KernelObject,
    KernelState,
    Key,
    Namespace,
    Neighbour,
    Port,
    Vxlan,
)
from driver.plan import Delete, Op, Set
from driver.values import Address, Interface, Prefix

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_UP, _NODAD, _LINK = 0x1, 0x02, 253
_AF_SPEC, _INET, _INET_CONF, _INET_FORWARDING = 26, 2, 1, 1
_MTU_OF_NOBODY = 65535

_Attributes = list[tuple[str, Any]]


class NetlinkKernel:
    """The kernel of this host; "the host" is the network namespace of the thread that makes it.

    Namespaces are pinned in *netns_dir*, which is made when the first one is. Meant for one
    thread, but indifferent to which.
    """

    def __init__(self, netns_dir: Path = Path("/run/netns")) -> None:
        self._host = Channel.here()
        self._host_namespace = netns.current()
        self._spaces = Spaces(netns_dir)

    def close(self) -> None:
        """Give back sockets and descriptors; the kernel objects stay."""
        self._spaces.close()
        self._host.close()
        with contextlib.suppress(OSError):
            os.close(self._host_namespace)

    def namespaces(self) -> Collection[str]:
        """Names of all pinned namespaces that are ours."""
        return self._spaces.names()

    def read(self, namespace: str) -> KernelState:
        """Everything of ours in *namespace*, itself included; empty when it does not exist.

        What others made in it is left out. A device of ours with a setting changed by hand that
        our objects do not name has links.WRONG_MTU. Raises KernelError.
        """
        wanted = Namespace(namespace)
        try:
            channel = self._spaces.channel(namespace)
            found: list[KernelObject] = [wanted, *contents(channel, namespace)] if channel else []
        except OSError as failure:
            raise refusal(wanted, failure, "read") from failure
        return {obj.key: obj for obj in found}

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        """Carry out *ops* in order; one failure never stops the others. See the Protocol.

        VNI, port, address family and the fixed flags of a VXLAN device cannot be changed: it is
        deleted and made anew, and has lost its rows then. Its local address is changed in place.
        """
        failures: dict[Key, KernelError] = {}
        for (action, namespace, device), some in groupby(ops, key=_batch):
            batch = list(some)
            if action == "rows":
                failures |= self._apply_rows(namespace, device, batch)
            elif action == "remove":
                failures |= self._remove(namespace, batch)
            else:
                failures |= self._apply_each(batch)
        return failures

    def underlay(self, vtep: Address | None) -> Underlay | None:
        """The device that has *vtep* (or the default route, for None); None when there is none."""
        return underlay.underlay(self._host, vtep)

    def default_source(self) -> Address | None:
        """The host's address towards the default route; None when it has no such route."""
        return underlay.default_source(self._host)

    def routes(self) -> Collection[Prefix]:
        """Prefixes that the host itself has routes to, without default routes."""
        return underlay.routes(self._host)

    def _channel_for(self, obj: KernelObject, namespace: str) -> Channel:
        channel = self._spaces.channel(namespace)
        if channel is None:
            raise absent(obj, f"network namespace {namespace}")
        return channel

    def _apply_each(self, ops: Sequence[Op]) -> dict[Key, KernelError]:
        failures: dict[Key, KernelError] = {}
        for op in ops:
            try:
                self._apply(op)
            except KernelError as failure:
                failures[subject(op).key] = failure
            except Refused as refused:
                failures |= failures_of([op], [refused])
            except OSError as failure:
                failures[subject(op).key] = failed(op, failure)
        return failures

    def _apply(self, op: Op) -> None:
        match op:
            case Set(Namespace(name)):
                self._spaces.make(name)
            case Set(Bridge() as bridge):
                self._set_bridge(bridge)
            case Set(Vxlan() as vxlan):
                self._set_vxlan(vxlan)
            case Set(Port() as port):
                self._set_port(port)
            case Set(BridgeAddress() as address):
                channel = self._channel_for(address, address.namespace)
                _add_address(channel, _existing(channel, address, address.device), address.interface)
            case Delete(Namespace(name)):
                self._spaces.drop(name)
            case Delete(BridgeAddress() as address):
                self._delete_address(address)

    def _apply_rows(self, namespace: str, device: str, ops: Sequence[Op]) -> dict[Key, KernelError]:
        try:
            channel = self._spaces.channel(namespace)
            found = links.link(channel, device) if channel else None
            if channel is None or found is None:
                what = f"VXLAN device {device} in {namespace}"
                return {o.want.key: absent(o.want, what) for o in ops if isinstance(o, Set)}
            return failures_of(ops, channel.attempt([rows.encode(op, found.index) for op in ops]))
        except OSError as failure:
            return {subject(op).key: failed(op, failure) for op in ops}

    def _remove(self, namespace: str, ops: Sequence[Op]) -> dict[Key, KernelError]:
        try:
            channel = self._spaces.channel(namespace)
            if channel is None:
                return {}
            return failures_of(ops, links.remove(channel, [subject(op).key[2] for op in ops]))
        except OSError as failure:
            return {subject(op).key: failed(op, failure) for op in ops}

    def _set_bridge(self, want: Bridge) -> None:
        channel = self._channel_for(want, want.namespace)
        have = _same_kind(channel, want, "bridge")
        if have is None:
            channel.do(Request(_NEWLINK, CREATE | EXCL, _new_bridge(want)))
            have = _existing(channel, want, want.name)
        configured = _link(have.index, _UP, _bridge_settings(want)) + _forwarding()
        channel.do(Request(_NEWLINK, 0, configured))
        made = _existing(channel, want, want.name)
        if not made.forwarding:  # what is missing is IPv6's, which no netlink message can switch on
            self._spaces.make(want.namespace)
        if links.cannot_resolve(made.index, links.addresses(channel)):
            _add_address(channel, made, links.link_local(made.mac))

    def _set_vxlan(self, want: Vxlan) -> None:
        channel = self._channel_for(want, want.namespace)
        bridge = _existing(channel, want, want.bridge)
        have = _same_kind(channel, want, "vxlan")
        if have and not _convertible(have, want):
            channel.do(Request(_DELLINK, 0, _link(have.index, None, [])))
            have = None
        if have is None:
            self._create_vxlan(want)
            have = _existing(channel, want, want.name)
        elif have.local != want.local or links.learns(have):
            channel.do(Request(_NEWLINK, 0, _link(have.index, None, [_linkinfo("vxlan", _movable(want))])))
        _settle(channel, have.index, want, bridge.index)

    def _create_vxlan(self, want: Vxlan) -> None:
        with self._spaces.pinned(want.namespace) as descriptor:
            try:
                self._host.do(Request(_NEWLINK, CREATE | EXCL, _new_vxlan(want, descriptor)))
            except OSError as failure:
                if failure.errno == errno.EEXIST:  # the name is free: that was seen before
                    raise vni_taken(want, self._holder(want)) from failure
                raise

    def _holder(self, want: Vxlan) -> str:
        for place in ("", *self.namespaces()):
            with contextlib.suppress(OSError):
                channel = self._spaces.channel(place) if place else self._host
                for found in links.links(channel).values() if channel else ():
                    if found.kind == "vxlan" and (found.vni, found.udp_port) == (want.vni, want.port):
                        return f"the VXLAN device {found.name} in {place or 'the host'}"
        return ""

    def _set_port(self, want: Port) -> None:
        channel = self._channel_for(want, want.namespace)
        bridge = _existing(channel, want, want.bridge)
        have = _same_kind(channel, want, "veth")
        if have and not have.ours and want.create:
            # Nobody knows where its other end is, which goes with it.
            channel.do(Request(_DELLINK, 0, _link(have.index, None, [])))
            have = None
        if have is None:
            if not want.create:
                raise absent(want, f"the veth {want.name}, whose container end the engine has,")
            self._create_pair(channel, want)
            have = _existing(channel, want, want.name)
        peer = links.link(self._host, want.peer)
        if peer and peer.kind == "veth" and not peer.alias:
            self._host.do(links.signature(want.peer, want.alias))
        _settle(channel, have.index, want, bridge.index)

    def _create_pair(self, channel: Channel, want: Port) -> None:
        stale = links.link(self._host, want.peer)
        if stale and not stale.ours:
            raise foreign(want, stale.name, stale.kind, "the host")
        if stale:
            self._host.do(Request(_DELLINK, 0, _link(stale.index, None, [])))
        pair = Request(_NEWLINK, CREATE | EXCL, _new_pair(want, self._host_namespace))
        # In one system call: who is killed leaves no pair behind that nobody knows for ours.
        channel.do(pair, links.signature(want.name, want.alias))

    def _delete_address(self, have: BridgeAddress) -> None:
        channel = self._spaces.channel(have.namespace)
        bridge = links.link(channel, have.device) if channel else None
        if channel and bridge:
            channel.do(Request(_DELADDR, 0, _address(bridge.index, have.interface)))


def _batch(op: Op) -> tuple[str, str, str]:
    """Tell which neighbouring operations can be done in one go."""
    match op:
        case Set(FdbEntry() | Neighbour() as row) | Delete(FdbEntry() | Neighbour() as row):
            return ("rows", row.namespace, row.device)
        case Delete(Bridge() | Vxlan() | Port() as device):
            return ("remove", device.namespace, "")
    return ("each", "", "")


def _existing(channel: Channel, obj: KernelObject, name: str) -> Link:
    found = links.link(channel, name)
    if found is None:
        raise absent(obj, name)
    return found


def _same_kind(channel: Channel, want: Bridge | Vxlan | Port, kind: str) -> Link | None:
    """Return the device with *want*'s name to go on from; None when one is to be made.

    An unsigned one of the right kind, in a namespace of ours, is a device that we were about to
    sign. Raises KernelError when the name is somebody else's.
    """
    have = links.link(channel, want.name)
    if have is None or (have.kind == kind and (have.ours or not have.alias)):
        return have
    if not have.ours:
        raise foreign(want, have.name, have.kind, want.namespace)
    channel.do(Request(_DELLINK, 0, _link(have.index, None, [])))
    return None


def _convertible(have: Link, want: Vxlan) -> bool:
    """Tell whether *have* can become *want* without being made anew."""
    same = (have.vni, have.udp_port) == (want.vni, want.port) and links.tunnel_is_sound(have)
    return same and _version(have.local) == _version(want.local)


def _version(local: Address | None) -> int:
    return local.version if local else 4


def _settle(channel: Channel, index: int, want: Vxlan | Port, bridge: int) -> None:
    # In two steps: the kernel raises a device before it looks at what else a message holds.
    plain = [("IFLA_MTU", want.mtu), ("IFLA_IFALIAS", want.alias), ("IFLA_MASTER", bridge)]
    channel.do(Request(_NEWLINK, 0, _link(index, None, plain)), Request(_NEWLINK, 0, _link(index, _UP, [])))


def _link(index: int, flags: int | None, values: _Attributes) -> bytes:
    message = ifinfmsg()
    message["index"] = index
    if flags is not None:
        message["flags"], message["change"] = flags, _UP
    message["attrs"] = values
    return _body(message)


def _body(message: Any) -> bytes:
    message.encode()
    return bytes(message.data[16:])  # without the header, which wire.py adds


def _linkinfo(kind: str, values: _Attributes) -> tuple[str, Any]:
    data = ("IFLA_INFO_DATA", {"attrs": values})
    return ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), data]})


def _bridge_settings(want: Bridge) -> _Attributes:
    return [
        ("IFLA_ADDRESS", want.mac),
        ("IFLA_MTU", want.mtu),
        ("IFLA_IFALIAS", want.alias),
        ("IFLA_MASTER", 0),
        _bridge_kind(),
    ]


def _bridge_kind(*more: tuple[str, int]) -> tuple[str, Any]:
    # Without snooping a multicast frame goes to every port, the tunnel included.
    return _linkinfo("bridge", [("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0), *more])


def _new_bridge(want: Bridge) -> bytes:
    # A bridge follows the smallest MTU of its ports until its own was changed once.
    settings = [("IFLA_IFNAME", want.name), ("IFLA_ADDRESS", want.mac), ("IFLA_MTU", _MTU_OF_NOBODY)]
    return _link(0, None, [*settings, _bridge_kind(("IFLA_BR_FORWARD_DELAY", 0))])


def _forwarding() -> bytes:
    # By hand: pyroute2 takes IFLA_INET_CONF for a structure, and would send one.
    on = attribute(_INET_FORWARDING, struct.pack("=I", 1))
    return attribute(_AF_SPEC, attribute(_INET, attribute(_INET_CONF, on)))


def _new_vxlan(want: Vxlan, namespace: int) -> bytes:
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


def _movable(want: Vxlan) -> _Attributes:
    local = "IFLA_VXLAN_LOCAL6" if _version(want.local) == 6 else "IFLA_VXLAN_LOCAL"
    return [("IFLA_VXLAN_LEARNING", 0), (local, str(want.local or "0.0.0.0"))]  # noqa: S104


def _new_pair(want: Port, host: int) -> bytes:
    peer: _Attributes = [
        ("IFLA_IFNAME", want.peer),
        ("IFLA_ADDRESS", want.peer_mac),
        ("IFLA_MTU", want.mtu),
        ("IFLA_NET_NS_FD", host),
    ]
    kind = _linkinfo("veth", [("VETH_INFO_PEER", {"attrs": peer})])
    return _link(0, None, [("IFLA_IFNAME", want.name), ("IFLA_MTU", want.mtu), kind])


def _add_address(channel: Channel, device: Link, interface: Interface) -> None:
    added = [interface, links.link_local(device.mac)] if interface.version == 6 else [interface]
    channel.do(*(Request(_NEWADDR, CREATE | REPLACE, _address(device.index, one)) for one in added))


def _address(index: int, interface: Interface) -> bytes:
    message = ifaddrmsg()
    message["family"] = 2 if interface.version == 4 else 10
    message["prefixlen"] = interface.network.prefixlen
    message["flags"] = 0 if interface.version == 4 else _NODAD
    message["scope"] = _LINK if interface.is_link_local else 0
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    return _body(message)
