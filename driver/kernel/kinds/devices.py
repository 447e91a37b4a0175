"""What bridges, VXLAN devices and veth pairs have in common: links with a name and our mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from driver.kernel.kinds.base import SpaceObject, Together
from driver.kernel.kinds.namespace import Namespace
from driver.kernel.netlink import links, messages
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.socket import Channel
from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Op, subject
from driver.kernel.refusal import absent, failures_of, foreign
from driver.kernel.spaces import Spaces
from driver.wish.errors import KernelError
from driver.wish.values import Interface


class Device(SpaceObject):
    """A link in a namespace of ours. Its alias (IFLA_IFALIAS) begins with ``pyoverlay ``: our mark."""

    __slots__ = ()

    link_kind: ClassVar[str]
    """As in "ip link add type KIND"."""
    namespace: str
    name: str
    alias: str

    @property
    def key(self) -> Key:
        """Identity: namespace and name."""
        return Key(self.kind, self.namespace, self.name)

    @property
    def parent(self) -> Key:
        """Its namespace."""
        return Key(Namespace.kind, self.namespace)

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    def together(self, *, deleting: bool) -> Together | None:
        """Return that devices of one namespace go together."""
        return Together(_remove, self.namespace) if deleting else None

    def same_kind(self, channel: Channel) -> Link | None:
        """Return the device with this name to build on; None when one must be made.

        An unsigned one of the right kind, in a namespace of ours, is a device that we were about to
        sign. Raises KernelError when the name is somebody else's.
        """
        have = links.link(channel, self.name)
        if have is None or (have.kind == self.link_kind and (have.ours or not have.alias)):
            return have
        if not have.ours:
            raise foreign(self, have.name, have.kind, self.namespace)
        channel.do(messages.deleted(have.index))
        return None


class Plugged(Device):
    """A device that is a port of a bridge: MTU, alias, master, up."""

    __slots__ = ()

    bridge: str
    mtu: int

    def settle(self, channel: Channel, have: Link, bridge: int) -> None:
        """Give it the settings that every port of a bridge has; raise OSError."""
        if not have.plain:
            channel.do(messages.released(have.index))
        # In two steps: the kernel raises a device before it looks at what else a message holds.
        channel.do(messages.plugged(have.index, self.mtu, self.alias, bridge), messages.raised(have.index))


def channel_for(obj: KernelObject, spaces: Spaces) -> Channel:
    """Return the socket into the place of *obj*; raise KernelError when that does not exist."""
    channel = spaces.channel(obj.key.place)
    if channel is None:
        raise absent(obj, f"network namespace {obj.key.place}")
    return channel


def existing(channel: Channel, obj: KernelObject, name: str) -> Link:
    """Return the device *name* that *obj* depends on; raise KernelError when there is none."""
    found = links.link(channel, name)
    if found is None:
        raise absent(obj, name)
    return found


def add_address(channel: Channel, device: Link, interface: Interface) -> None:
    """Give a device an address, and with an IPv6 one the link-local one of its MAC; raise OSError."""
    added = [interface, links.link_local(device.mac)] if interface.version == 6 else [interface]
    channel.do(*(messages.new_address(device.index, one) for one in added))


def _remove(spaces: Spaces, place: str, _: str, ops: list[Op]) -> Mapping[Key, KernelError]:
    """Delete devices: the kernel waits once for them all."""
    channel = spaces.channel(place)
    if channel is None:
        return {}
    return failures_of(ops, links.remove(channel, [subject(op).key.name for op in ops]))
