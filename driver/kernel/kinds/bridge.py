"""The switch of one segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.devices import Device, add_address, channel_for, existing
from driver.kernel.look import Look
from driver.kernel.netlink import links, messages
from driver.kernel.objects import KernelObject, Kind
from driver.kernel.spaces import Spaces
from driver.wish.values import Mac


@dataclass(frozen=True, slots=True)
class Bridge(Device):
    """The switch of one segment; up, IPv4 forwarding on.

    *mtu* is the containers': what the host routes between subnets must fit.
    """

    kind: ClassVar = Kind(10, "bridge")
    module: ClassVar = "bridge"
    link_kind: ClassVar = "bridge"
    is_shared: ClassVar = True

    namespace: str
    name: str
    mac: Mac
    mtu: int
    alias: str
    sound: bool = True

    @property
    def description(self) -> str:
        """Its name and place."""
        return f"bridge {self.name} in {self.namespace}"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the bridges that bear our mark."""
        for link in look.ours(cls.link_kind):
            sound = links.bridge_is_sound(link) and not links.cannot_resolve(link.index, look.addresses)
            yield cls(look.place, link.name, link.mac, link.mtu, link.alias, sound)

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Make it, or change it in place."""
        channel = channel_for(self, spaces)
        found = self.same_kind(channel)
        if found is None:
            channel.do(messages.new_bridge(self.name, self.mac))
            found = existing(channel, self, self.name)
        channel.do(messages.bridge(found.index, self.mac, self.mtu, self.alias))
        made = existing(channel, self, self.name)
        if not made.forwarding:  # only IPv6's is missing, which no netlink message can switch on
            spaces.make(self.namespace)
        if links.cannot_resolve(made.index, links.addresses(channel)):
            add_address(channel, made, links.link_local(made.mac))
