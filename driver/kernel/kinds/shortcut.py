"""The path from a tunnel straight into a container, past the bridge (ADR 12)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.base import SpaceObject
from driver.kernel.kinds.devices import channel_for, existing
from driver.kernel.kinds.port import Port
from driver.kernel.kinds.vxlan import Vxlan
from driver.kernel.look import Look
from driver.kernel.netlink import links
from driver.kernel.netlink.socket import Refused
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.shortcuts import filters
from driver.kernel.spaces import Spaces
from driver.wish.values import Mac


@dataclass(frozen=True, slots=True)
class Shortcut(SpaceObject):
    """The path from a tunnel straight into the container behind *port*, past bridge and queue (ADR 12).

    For frames to *mac* alone; all others take the bridge. Ours are in the map of the filter named
    ``pyoverlay`` of a VXLAN device of ours. One that is not sound stands for a filter of ours whose map
    cannot be read.
    """

    kind: ClassVar = Kind(70, "shortcut")
    goes_with_parent: ClassVar = True

    namespace: str
    device: str
    mac: Mac
    port: str
    """Empty when there is no such device any more."""
    sound: bool = True

    @property
    def key(self) -> Key:
        """Identity: device and MAC; the device alone for a filter that cannot be read."""
        return Key(self.kind, self.namespace, self.device, self.mac if self.sound else "")

    @property
    def parent(self) -> Key:
        """Its tunnel."""
        return Key(Vxlan.kind, self.namespace, self.device)

    @property
    def needs(self) -> Collection[Key]:
        """The port that it leads to."""
        return (Key(Port.kind, self.namespace, self.port),)

    @property
    def leads_nowhere(self) -> bool:
        """Its container has ended."""
        return self.sound and not self.port

    @property
    def label(self) -> str:
        """From which tunnel to which MAC."""
        return f"shortcut to {self.mac} from {self.device}" if self.sound else f"filter of {self.device}"

    @property
    def description(self) -> str:
        """From which tunnel to which MAC, by which port."""
        return f"shortcut to {self.mac} from {self.device} to {self.port} in {self.namespace}"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield what is in the maps of our filters."""
        for tunnel in look.ours(Vxlan.link_kind):
            try:
                found = filters.read_map(look.channel, tunnel.index)
            except Refused:
                raise
            except OSError:  # from bpf(2): a broken shortcut must not keep anything else from being read
                yield cls(look.place, tunnel.name, Mac(""), "", sound=False)
                continue
            for mac, port in found:
                yield cls(look.place, tunnel.name, mac, look.name_of(port))

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Lead frames into the container."""
        channel = channel_for(self, spaces)
        tunnel, port = (existing(channel, self, name) for name in (self.device, self.port))
        filters.lead(channel, tunnel.index, self.mac, port.index)

    def delete(self, spaces: Spaces) -> None:
        """Lead frames over the bridge again; all of them when the map cannot be read."""
        channel = spaces.channel(self.namespace)
        tunnel = links.link(channel, self.device) if channel else None
        if channel and tunnel and self.sound:
            filters.lead_no_more(channel, tunnel.index, self.mac)
        elif channel and tunnel:
            filters.remove(channel, tunnel.index)
