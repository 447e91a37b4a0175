"""The kinds of kernel objects: one class each, which knows everything about its kind.

To add a kind, write its module, list it here, and ask for it (`reconcile.desired`).

Belongs here: for each kind its identity, its parent, how it is known as ours, read, set, deleted, compared
and described.

Stays out: which objects there should be, and in which order they are changed.

A reviewer checks: an object that is set and read again compares equal; what does not bear our mark is left
alone; settings that the fields do not name are watched by `sound`; a kind's rank is above its parent's.
"""

from __future__ import annotations

from typing import Final

from driver.kernel.kinds.address import BridgeAddress
from driver.kernel.kinds.balancer import Balancer, Services
from driver.kernel.kinds.base import SpaceObject
from driver.kernel.kinds.bridge import Bridge
from driver.kernel.kinds.namespace import Namespace
from driver.kernel.kinds.port import Port
from driver.kernel.kinds.rows import FLOOD_MAC, FdbEntry, Neighbour, Row
from driver.kernel.kinds.shortcut import Shortcut
from driver.kernel.kinds.vxlan import Vxlan
from driver.kernel.objects import Key, Kind

KINDS: Final[tuple[type[SpaceObject], ...]] = (
    Namespace,
    Bridge,
    BridgeAddress,
    Vxlan,
    Port,
    FdbEntry,
    Neighbour,
    Shortcut,
)
"""Everything that is read in a network's namespace, or in the host's own."""

SHARED: Final[frozenset[Kind]] = frozenset(kind.kind for kind in KINDS if kind.is_shared)
"""What every container of a network needs."""

__all__ = [
    "FLOOD_MAC",
    "KINDS",
    "SHARED",
    "Balancer",
    "Bridge",
    "BridgeAddress",
    "FdbEntry",
    "Key",
    "Kind",
    "Namespace",
    "Neighbour",
    "Port",
    "Row",
    "Services",
    "Shortcut",
    "Vxlan",
]
