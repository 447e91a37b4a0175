"""One look at a namespace: what all kinds are read from, asked for once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from driver.kernel.netlink import links
from driver.kernel.netlink.links import Assigned, Link
from driver.kernel.netlink.socket import Channel
from driver.kernel.objects import KernelObject


@dataclass
class Look:
    """A namespace as it is now."""

    channel: Channel
    place: str
    pinned: bool
    """Whether others can find it."""
    devices: Mapping[int, Link]
    """All devices, by index."""
    rows: Collection[KernelObject] | None = None
    """Only rows at these rows' places are read; None: all."""

    def ours(self, kind: str) -> list[Link]:
        """Return the devices of one kind that bear our mark."""
        return [link for link in self.devices.values() if link.ours and link.kind == kind]

    def name_of(self, index: int) -> str:
        """Return the name of a device; empty when there is none with this index."""
        return self.devices[index].name if index in self.devices else ""

    @cached_property
    def addresses(self) -> list[Assigned]:
        """The addresses of all devices. Raises OSError."""
        return links.addresses(self.channel)
