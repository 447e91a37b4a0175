"""What a kernel is asked to do: set an object, delete it, or tell of addresses. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from driver.kernel.objects import KernelObject
from driver.wish.values import Address, Mac


@dataclass(frozen=True, slots=True)
class Set:
    """Make *want* exist with exactly its values; *have* is what is there now, if anything.

    *have* may bear another name: somebody renamed it, and it cannot be recreated.
    """

    want: KernelObject
    have: KernelObject | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove *have*; one that is gone already is no error."""

    have: KernelObject


Op = Set | Delete


class Owner(NamedTuple):
    """Who has an address: the MAC address to send to."""

    address: Address
    mac: Mac
    routes: bool = False
    """Whether it is a gateway."""


class Announcement(NamedTuple):
    """Whoever is behind *ports* of a bridge, and the bridge itself, is to hear of *owners*."""

    namespace: str
    bridge: str
    ports: tuple[str, ...]
    owners: tuple[Owner, ...]


def subject(op: Op) -> KernelObject:
    """Return the object that *op* is about."""
    return op.want if isinstance(op, Set) else op.have
