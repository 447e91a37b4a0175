"""What every kind in our network namespaces has: it reads, sets and deletes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple, TypeAlias

from driver.kernel.look import Look
from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Op
from driver.kernel.spaces import Spaces
from driver.wish.errors import KernelError

CarryOut: TypeAlias = Callable[[Spaces, str, str, list[Op]], Mapping[Key, KernelError]]
"""Carries out operations on objects of one place and device; returns the failures by key. Raises OSError."""


class Together(NamedTuple):
    """Neighbouring operations of one kind of work, in one place, are passed on as one batch.

    The kernel takes thousands of rows in the time of a few, and waits once for a group of devices.
    """

    carry_out: CarryOut
    place: str
    device: str = ""


class SpaceObject(KernelObject):
    """An object in a network namespace that we can reach: of a network, or the host's own."""

    __slots__ = ()

    is_of_host: ClassVar[bool] = False
    """Whether objects of this kind are in the host's own namespace, rather than in networks'."""

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield our objects of this kind in a namespace; raise OSError."""
        raise NotImplementedError

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Make it exist with exactly these values; *have* is what is there now, if anything.

        Raises KernelError or OSError.
        """
        raise NotImplementedError

    def delete(self, spaces: Spaces) -> None:
        """Remove it; one that is gone is no error. Raises KernelError or OSError."""
        raise NotImplementedError

    def together(self, *, deleting: bool) -> Together | None:
        """Return with what it can be set, or deleted, in one go; None: alone, by `set` and `delete`."""
        return None
