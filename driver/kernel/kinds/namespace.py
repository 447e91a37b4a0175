"""The network namespace of one overlay network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.base import SpaceObject
from driver.kernel.look import Look
from driver.kernel.netlink import links
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.spaces import Spaces


@dataclass(frozen=True, slots=True)
class Namespace(SpaceObject):
    """The network namespace of one overlay network, pinned where the host sees it (ADR 1).

    Ours when its pinned name starts with ``pyoverlay-``. When somebody removed the pin ("ip netns delete"),
    it lives on with its containers while we hold it.
    """

    kind: ClassVar = Kind(0, "namespace")
    is_shared: ClassVar = True

    name: str
    pinned: bool = True
    sound: bool = True

    @property
    def key(self) -> Key:
        """Identity: the pinned name."""
        return Key(self.kind, self.name)

    @property
    def label(self) -> str:
        """Its name."""
        return f"namespace {self.name}"

    @property
    def description(self) -> str:
        """Its name: it is in no place but the host."""
        return f"network namespace {self.name}"

    def deviation(self, have: KernelObject | None) -> str:
        """Say that it, or its pin, was gone."""
        return f"{self.label} was gone" if have is None else f"the pin of {self.label} was gone"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the namespace itself."""
        yield cls(look.place, look.pinned)

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Make it, or bring its pin and its settings back."""
        spaces.make(self.name)

    def delete(self, spaces: Spaces) -> None:
        """Delete every tunnel, one not yet signed too, and let the namespace end.

        It goes late, and its VNIs would be taken until then.
        """
        channel = spaces.channel(self.name)
        if channel:
            tunnels = [one.name for one in links.links(channel).values() if one.kind == "vxlan"]
            links.remove(channel, tunnels)
        spaces.drop(self.name)
