"""The address by which a bridge routes a subnet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.base import SpaceObject
from driver.kernel.kinds.bridge import Bridge
from driver.kernel.kinds.devices import add_address, channel_for, existing
from driver.kernel.look import Look
from driver.kernel.netlink import links, messages
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.spaces import Spaces
from driver.wish.values import Interface


@dataclass(frozen=True, slots=True)
class BridgeAddress(SpaceObject):
    """A gateway address on a bridge of ours, with its prefix length; of global scope."""

    kind: ClassVar = Kind(20, "address")
    is_shared: ClassVar = True
    goes_with_parent: ClassVar = True

    namespace: str
    device: str
    interface: Interface
    sound: bool = True

    @property
    def key(self) -> Key:
        """Identity: device and address."""
        return Key(self.kind, self.namespace, self.device, str(self.interface))

    @property
    def parent(self) -> Key:
        """Its bridge."""
        return Key(Bridge.kind, self.namespace, self.device)

    @property
    def label(self) -> str:
        """The address, and whose."""
        return f"address {self.interface} of {self.device}"

    @property
    def description(self) -> str:
        """The address, and where."""
        return f"address {self.interface} on {self.device} in {self.namespace}"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the global addresses of our bridges."""
        bridges = {link.index: link.name for link in look.ours(Bridge.link_kind)}
        for address in look.addresses if bridges else ():
            if address.index in bridges and address.is_global:
                yield cls(look.place, bridges[address.index], address.interface)

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Add it."""
        channel = channel_for(self, spaces)
        add_address(channel, existing(channel, self, self.device), self.interface)

    def delete(self, spaces: Spaces) -> None:
        """Remove it."""
        channel = spaces.channel(self.namespace)
        bridge = links.link(channel, self.device) if channel else None
        if channel and bridge:
            channel.do(messages.deleted_address(bridge.index, self.interface))
