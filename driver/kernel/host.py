"""The real kernel: namespaces, bridges, VXLAN devices, veth pairs, rows.

pyroute2 spells the messages that are few and intricate (messages.py); wire.py carries them, and
struct does those that are many (rows.py), read all the time (links.py) or come unasked (events.py).

VXLAN devices are made through the *host's* socket right into the namespace: their outer packets
leave from where they were made, and no passing name is ever seen on the host.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from driver.kernel import netns
from driver.kernel.contents import contents
from driver.kernel.netlink import links, messages, routes, rows
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.events import HostListener, Listener
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.socket import Channel, Refused, Request
from driver.kernel.objects import (
    Bridge,
    BridgeAddress,
    FdbEntry,
    KernelObject,
    KernelState,
    Key,
    Namespace,
    Neighbour,
    Port,
    Row,
    Shortcut,
    Vxlan,
)
from driver.kernel.ops import Delete, Op, Set, subject
from driver.kernel.refusal import absent, failed, failures_of, foreign, refusal, vni_taken
from driver.kernel.shortcuts import filters
from driver.kernel.spaces import Spaces
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import HOST, Address, Interface, Prefix

log = logging.getLogger(__name__)

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = nl.RTM_NEWLINK, nl.RTM_DELLINK, nl.RTM_NEWADDR, nl.RTM_DELADDR
CREATE, EXCL, REPLACE = nl.NLM_F_CREATE, nl.NLM_F_EXCL, nl.NLM_F_REPLACE


class NetlinkKernel:
    """The kernel of this host; "the host" is the network namespace of the thread that makes it.

    Namespaces are pinned in *netns_dir*, which is made when the first one is. Meant for one
    thread, but indifferent to which.
    """

    def __init__(self, netns_dir: Path = Path("/run/netns")) -> None:
        self._host = Channel.here()
        self._host_listener = HostListener.here()
        self._host_namespace = netns.current()
        self._spaces = Spaces(netns_dir)
        # Polled, not read: it tells when anything is mounted or unmounted (proc_pid_mountinfo(5)).
        self._mounts = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Give back sockets and descriptors; the kernel objects stay."""
        self._spaces.close()
        self._mounts.close()
        self._host_listener.close()
        self._host.close()
        with contextlib.suppress(OSError):
            os.close(self._host_namespace)

    def has_shortcuts(self) -> bool:
        """Whether this kernel has shortcuts past the bridge: tried where nobody is."""
        try:
            filters.try_out()
        except OSError as failure:
            log.info("this kernel has no shortcuts past the bridge: %s", failure.strerror)
            return False
        return True

    def namespaces(self) -> Collection[str]:
        """Names of all pinned namespaces that are ours."""
        return self._spaces.names()

    def read_place(self, namespace: str, rows: Collection[Row] | None = None) -> KernelState:
        """Everything of ours in *namespace*, itself included; empty when it does not exist. See the Protocol.

        What others made in it is left out. A device of ours with a setting changed by hand that
        our objects do not name has WRONG_MTU. Raises KernelError.
        """
        wanted = Namespace(namespace)
        try:
            return {obj.key: obj for obj in self._read(wanted, rows)}
        except OSError as failure:
            raise refusal(wanted, failure, "read") from failure

    def container_ends(self) -> Collection[str]:
        """Names of the container ends of ours that are in the host's namespace: no container has them.

        Raises KernelError.
        """
        try:
            found = links.links(self._host).values()
        except OSError as failure:
            raise KernelError(
                f"cannot read the host's devices: {failure.strerror}", failure.errno or 0
            ) from failure
        return [link.name for link in found if link.ours and link.kind == "veth"]

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
        found = routes.device(self._host, vtep)
        self._host_listener.expect(found)
        return Underlay(found.name, found.mtu) if found else None

    def default_source(self) -> Address | None:
        """The host's address towards the default route; None when it has no such route."""
        return routes.default_source(self._host)

    def routes(self) -> Collection[Prefix]:
        """Prefixes that the host itself has routes to, without default routes."""
        return routes.routes(self._host)

    def await_news(self, timeout: float, wake: int) -> Collection[str]:
        """Wait for news of what was read. See the Protocol."""
        deadline = time.monotonic() + timeout
        while True:
            ready = self._poll(wake, max(0.0, deadline - time.monotonic()))
            changed = {n for n, space in self._spaces.open.items() if _has_news(space.listener, ready)}
            if _has_news(self._host_listener, ready):
                changed.add(HOST)
            if self._mounts.fileno() in ready:
                changed |= self._spaces.moved()
            if changed or wake in ready or not ready:
                return changed

    def _poll(self, wake: int, timeout: float) -> set[int]:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        listeners = [self._host_listener, *(space.listener for space in self._spaces.open.values())]
        for listener in listeners:
            poll.register(listener, select.POLLIN)
        kept = {listener.fileno() for listener in listeners if listener.has_kept_news}
        return kept | {descriptor for descriptor, _ in poll.poll(0 if kept else timeout * 1000)}

    def _read(self, wanted: Namespace, some: Collection[Row] | None) -> Iterator[KernelObject]:
        space = self._spaces.space(wanted.name)
        if space is None:
            return
        if some is None:
            space.listener.forget()
        else:
            space.listener.forget_all_but_rows(some)
        found = links.links(space.channel)
        space.listener.expect(found)
        yield Namespace(wanted.name, self._spaces.is_pinned(wanted.name))
        yield from contents(space.channel, wanted.name, found, some)

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
            case Set(Port() as port, before):
                self._set_port(port, before)
            case Set(BridgeAddress() as address):
                channel = self._channel_for(address, address.namespace)
                _add_address(channel, _existing(channel, address, address.device), address.interface)
            case Set(Shortcut() as shortcut):
                self._set_shortcut(shortcut)
            case Delete(Shortcut() as shortcut):
                self._delete_shortcut(shortcut)
            case Delete(Namespace(name)):
                self._free_vnis(name)
                self._spaces.drop(name)
            case Delete(BridgeAddress() as address):
                self._delete_address(address)

    def _free_vnis(self, namespace: str) -> None:
        """Delete every tunnel, one not yet signed too: a namespace dies late, and its VNIs with it."""
        channel = self._spaces.channel(namespace)
        if channel:
            links.remove(channel, [one.name for one in links.links(channel).values() if one.kind == "vxlan"])

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
            return failures_of(ops, links.remove(channel, [subject(op).key.name for op in ops]))
        except OSError as failure:
            return {subject(op).key: failed(op, failure) for op in ops}

    def _set_bridge(self, want: Bridge) -> None:
        channel = self._channel_for(want, want.namespace)
        have = _same_kind(channel, want, "bridge")
        if have is None:
            channel.do(Request(_NEWLINK, CREATE | EXCL, messages.new_bridge(want)))
            have = _existing(channel, want, want.name)
        channel.do(Request(_NEWLINK, 0, messages.bridge(have.index, want)))
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
            channel.do(Request(_DELLINK, 0, messages.device(have.index)))
            have = None
        if have is None:
            self._create_vxlan(want)
            have = _existing(channel, want, want.name)
        elif have.local != want.local or links.learns(have):
            channel.do(Request(_NEWLINK, 0, messages.moved(have.index, want)))
        _settle(channel, have, want, bridge.index)

    def _create_vxlan(self, want: Vxlan) -> None:
        with self._spaces.pinned(want.namespace) as descriptor:
            try:
                self._host.do(Request(_NEWLINK, CREATE | EXCL, messages.new_vxlan(want, descriptor)))
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

    def _set_port(self, want: Port, before: KernelObject | None) -> None:
        channel = self._channel_for(want, want.namespace)
        if isinstance(before, Port) and before.name != want.name:
            links.rename(channel, before.name, want.name)
        bridge = _existing(channel, want, want.bridge)
        have = _same_kind(channel, want, "veth")
        if have and not have.ours and want.create:
            # Nobody knows where its other end is, which goes with it.
            channel.do(Request(_DELLINK, 0, messages.device(have.index)))
            have = None
        if have is None:
            if not want.create:
                raise absent(want, f"the veth {want.name}, whose container end the engine has,")
            self._create_pair(channel, want, bridge.index)
            have = _existing(channel, want, want.name)
        peer = links.link(self._host, want.peer)
        if peer and peer.kind == "veth" and not peer.alias:
            self._host.do(links.signature(want.peer, want.alias))
        _settle(channel, have, want, bridge.index)

    def _create_pair(self, channel: Channel, want: Port, bridge: int) -> None:
        stale = links.link(self._host, want.peer)
        if stale and not stale.ours:
            raise foreign(want, stale.name, stale.kind, "the host")
        if stale:
            self._host.do(Request(_DELLINK, 0, messages.device(stale.index)))
        pair = Request(_NEWLINK, CREATE | EXCL, messages.new_pair(want, self._host_namespace))
        # In one system call: who is killed leaves no pair behind that nobody knows for ours.
        channel.do(pair, links.signature(want.name, want.alias))
        # What the bridge has learnt of the address's last host would hold until this container speaks.
        channel.attempt([rows.forgotten(tunnel, want.peer_mac) for tunnel in links.tunnels(channel, bridge)])

    def _set_shortcut(self, want: Shortcut) -> None:
        channel = self._channel_for(want, want.namespace)
        tunnel, port = (_existing(channel, want, name) for name in (want.device, want.port))
        filters.lead(channel, tunnel.index, want.mac, port.index)

    def _delete_shortcut(self, have: Shortcut) -> None:
        channel = self._spaces.channel(have.namespace)
        tunnel = links.link(channel, have.device) if channel else None
        if channel and tunnel:
            filters.lead_no_more(channel, tunnel.index, have.mac)

    def _delete_address(self, have: BridgeAddress) -> None:
        channel = self._spaces.channel(have.namespace)
        bridge = links.link(channel, have.device) if channel else None
        if channel and bridge:
            channel.do(Request(_DELADDR, 0, messages.address(bridge.index, have.interface)))


def _has_news(listener: Listener, ready: Collection[int]) -> bool:
    return listener.fileno() in ready and listener.heard()


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
    channel.do(Request(_DELLINK, 0, messages.device(have.index)))
    return None


def _convertible(have: Link, want: Vxlan) -> bool:
    """Tell whether *have* can become *want* without being made anew."""
    same = (have.vni, have.udp_port) == (want.vni, want.port) and links.tunnel_is_sound(have)
    return same and messages.version(have.local) == messages.version(want.local)


def _settle(channel: Channel, have: Link, want: Vxlan | Port, bridge: int) -> None:
    if not have.plain:
        channel.do(Request(_NEWLINK, 0, messages.released(have.index)))
    # In two steps: the kernel raises a device before it looks at what else a message holds.
    channel.do(
        Request(_NEWLINK, 0, messages.plugged(have.index, want, bridge)),
        Request(_NEWLINK, 0, messages.raised(have.index)),
    )


def _add_address(channel: Channel, device: Link, interface: Interface) -> None:
    added = [interface, links.link_local(device.mac)] if interface.version == 6 else [interface]
    channel.do(*(Request(_NEWADDR, CREATE | REPLACE, messages.address(device.index, one)) for one in added))
