"""Kernel objects: what this host's kernel should hold, or does hold.

A key is the object's identity, by what the kernel indexes it; the other fields
are its value. Equality of the objects is the comparison between wish and kernel, so a
reader of the kernel must produce exactly these values. Rows are tuples, since a host may
have tens of thousands of them.

How a freshly started process knows an object as ours, from the kernel alone:

=================  ====================================================================
namespace          its pinned name starts with ``pyoverlay-``
bridge, VXLAN      in such a namespace, with an alias (IFLA_IFALIAS) ``pyoverlay …``
port (veth)        likewise; the alias names endpoint and addresses for a human reader
FDB row            on a VXLAN device of ours, ``self``, permanent, with a destination
neighbour          on a VXLAN device of ours, permanent
address            on a bridge of ours, scope global
shortcut           in the map of the filter named ``pyoverlay`` of a VXLAN device of ours
balancer           in a container's namespace, a table of nftables named as our namespaces
=================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from driver.wish.values import TUNNEL_MTU, Address, Interface, Mac, Vni

FLOOD_MAC = Mac("00:00:00:00:00:00")
"""FDB rows of this MAC are the head-end replication list: one per VTEP that has the network."""

WRONG_MTU = -1
"""Stands for "some setting that our objects do not name is not as we make it".

No wish has it, so a device that bears it is set again, whatever was changed by hand.
"""


class Kind(IntEnum):
    """Parents before children when building, the reverse when tearing down."""

    NAMESPACE = 0
    BRIDGE = 1
    ADDRESS = 2
    VXLAN = 3
    PORT = 4
    FDB = 5
    NEIGHBOUR = 6
    SHORTCUT = 7
    BALANCER = 8


SHARED = frozenset({Kind.NAMESPACE, Kind.BRIDGE, Kind.ADDRESS, Kind.VXLAN})
"""What every container of a network needs."""

Services: TypeAlias = Mapping[Address, tuple[Address, ...]]
"""Virtual addresses and the backends of each, in order."""


class Key(NamedTuple):
    """An object's identity, by what the kernel indexes it. Keys sort parents before children."""

    kind: Kind
    place: str
    """The namespace: of ours by its name, a container's by its path."""
    name: str = ""
    """The device, or what else the namespace calls it."""
    rest: str = ""
    """What tells it from others of that name."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """The network namespace of one overlay network, pinned where the host sees it.

    When somebody removed the pin ("ip netns delete"), it lives on with its containers while we hold it.
    """

    name: str
    pinned: bool = True

    @property
    def key(self) -> Key:
        """Identity: the pinned name."""
        return Key(Kind.NAMESPACE, self.name)


@dataclass(frozen=True, slots=True)
class Bridge:
    """The switch of one segment; up, IPv4 forwarding on.

    *mtu* is the containers': what the host routes from one subnet to another must fit.
    """

    namespace: str
    name: str
    mac: Mac
    mtu: int
    alias: str

    @property
    def key(self) -> Key:
        """Identity: namespace and name."""
        return Key(Kind.BRIDGE, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class BridgeAddress:
    """A gateway address on a bridge (with its prefix length)."""

    namespace: str
    device: str
    interface: Interface

    @property
    def key(self) -> Key:
        """Identity: device and address."""
        return Key(Kind.ADDRESS, self.namespace, self.device, str(self.interface))


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The tunnel device of one segment: nolearning, ARP/ND proxy, a port of *bridge*, up.

    *local* is the outer source address; None on a host that has no underlay.
    """

    namespace: str
    name: str
    vni: Vni
    port: int
    local: Address | None
    bridge: str
    alias: str
    mtu: int = TUNNEL_MTU
    """No wish has another one; the kernel may, after a careless hand or a former version of ours."""

    @property
    def key(self) -> Key:
        """Identity: namespace and name."""
        return Key(Kind.VXLAN, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Port:
    """The bridge end of a container's veth pair, in the network's namespace.

    The container end, *peer*, is made beside it in the host's namespace with *peer_mac* and
    *peer_mtu*, for the engine to move. After that the kernel no longer shows it to us, so these
    and *create* do not take part in comparisons. *create* is false once the engine has the
    container end: a port that is gone then is not made anew.
    """

    namespace: str
    name: str
    bridge: str
    alias: str
    peer: str = field(default="", compare=False)
    peer_mac: Mac = field(default=Mac(""), compare=False)
    peer_mtu: int = field(default=0, compare=False)
    create: bool = field(default=True, compare=False)
    mtu: int = TUNNEL_MTU
    """As a VXLAN device's."""

    @property
    def key(self) -> Key:
        """Identity: namespace and name."""
        return Key(Kind.PORT, self.namespace, self.name)


class FdbEntry(NamedTuple):
    """Inner MAC -> outer address: to which VTEP a frame for *mac* goes.

    Rows of FLOOD_MAC are many per device, one per VTEP; all others are one per MAC.
    """

    namespace: str
    device: str
    mac: Mac
    vtep: Address

    @property
    def key(self) -> Key:
        """Identity: device and MAC, and the VTEP for a replication row."""
        rest = f"{self.mac} {self.vtep}" if self.mac == FLOOD_MAC else self.mac
        return Key(Kind.FDB, self.namespace, self.device, rest)


class Neighbour(NamedTuple):
    """Inner address -> inner MAC: what the VXLAN device answers to ARP and ND."""

    namespace: str
    device: str
    address: Address
    mac: Mac

    @property
    def key(self) -> Key:
        """Identity: device and address."""
        return Key(Kind.NEIGHBOUR, self.namespace, self.device, self.address.packed.hex())


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The way from a tunnel straight into the container behind *port*, past bridge and queue (ADR 12).

    For frames to *mac* alone; all others take the bridge.
    """

    namespace: str
    device: str
    mac: Mac
    port: str
    """Empty when there is no such device any more."""

    @property
    def key(self) -> Key:
        """Identity: device and MAC."""
        return Key(Kind.SHORTCUT, self.namespace, self.device, self.mac)


@dataclass(frozen=True, slots=True)
class Balancer:
    """The services of one network in a container's own namespace: destination NAT for what it sends.

    Connections to a virtual address go to its backends in turn; where there is none they are refused.
    """

    sandbox: str
    """The container's namespace, by the path that the engine gave."""
    namespace: str
    """The network's, whose name the table bears."""
    services: Services
    turn: int = field(default=0, compare=False)
    """With which backend to begin: not all containers with the same one."""
    sound: bool = True
    """No wish has False; the kernel may, after a careless hand."""

    @property
    def key(self) -> Key:
        """Identity: sandbox and network."""
        return Key(Kind.BALANCER, self.sandbox, self.namespace)


Row: TypeAlias = FdbEntry | Neighbour
KernelObject: TypeAlias = Namespace | Bridge | BridgeAddress | Vxlan | Port | Row | Shortcut | Balancer
KernelState: TypeAlias = Mapping[Key, KernelObject]


def parent(obj: KernelObject) -> Key | None:
    """Return the key of the object that takes *obj* with it when it goes; None when there is none of ours."""
    match obj:
        case Namespace() | Balancer():
            return None
        case Bridge() | Vxlan() | Port():
            return Key(Kind.NAMESPACE, obj.namespace)
        case BridgeAddress():
            return Key(Kind.BRIDGE, obj.namespace, obj.device)
        case FdbEntry() | Neighbour() | Shortcut():
            return Key(Kind.VXLAN, obj.namespace, obj.device)


def index(objects: list[KernelObject]) -> dict[Key, KernelObject]:
    """Key a list of objects."""
    return {obj.key: obj for obj in objects}
