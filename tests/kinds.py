"""A throw-away kind: what it takes to add one. It is of the host, where the product has none yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.base import SpaceObject
from driver.kernel.look import Look
from driver.kernel.names import ALIAS_PREFIX
from driver.kernel.netlink import links, messages
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.spaces import Spaces
from driver.wish.values import HOST, Mac

PREFIX = "pyomark"


@dataclass(frozen=True, slots=True)
class Marker(SpaceObject):
    """A bridge without ports in the host's own namespace; its MTU is all there is to it."""

    kind: ClassVar = Kind(90, "marker")
    is_of_host: ClassVar = True

    name: str
    mtu: int
    sound: bool = True

    @property
    def key(self) -> Key:
        return Key(self.kind, HOST, self.name)

    @property
    def label(self) -> str:
        return f"marker {self.name}"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        for link in look.ours("bridge"):
            if link.name.startswith(PREFIX):
                yield cls(link.name, link.mtu, link.up)

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        if have is None:
            spaces.host.do(messages.new_bridge(self.name, Mac("02:00:00:00:00:77")))
        found = links.link(spaces.host, self.name)
        assert found
        spaces.host.do(messages.plugged(found.index, self.mtu, f"{ALIAS_PREFIX}{self.name}", 0))
        spaces.host.do(messages.raised(found.index))

    def delete(self, spaces: Spaces) -> None:
        links.remove(spaces.host, [self.name])
