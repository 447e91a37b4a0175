"""The nouns of the overlay, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from driver.wish.values import VXLAN_PORT, Address, EndpointId, Interface, Mac, NetworkId, NodeId, Prefix, Vni


@dataclass(frozen=True, slots=True)
class Subnet:
    """One prefix of a network and the address that the host routes it with, if it has one."""

    prefix: Prefix
    gateway: Address | None = None
    reserved: frozenset[Address] = frozenset()
    """What no container shall have, as the user said with ``--aux-address``."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One broadcast domain: a bridge, a VXLAN device and a VNI, with the subnets on it.

    A segment has one subnet, or all of a network's when they are of both families.
    """

    vni: Vni
    subnets: tuple[Subnet, ...]

    def subnet_of(self, address: Address) -> Subnet | None:
        """Return the subnet that contains *address*, or None."""
        return next((s for s in self.subnets if address in s.prefix), None)


@dataclass(frozen=True, slots=True)
class Network:
    """An overlay network as the engine created it on this host."""

    id: NetworkId
    segments: tuple[Segment, ...]
    port: int = VXLAN_PORT
    mtu: int | None = None
    """What the containers see, if the user said so."""
    underlay_mtu: int | None = None
    """The underlay's MTU, if the user said so; None: ask the kernel."""
    internal: bool = False
    """Whether it has no egress, as the engine says once, at CreateNetwork.

    Nothing here depends on it yet: egress is docker_gwbridge's. It stays on disk, since the engine never
    repeats it and the former version does not read a network without it.
    """

    def segment_of(self, address: Address) -> Segment | None:
        """Return the segment that carries *address*, or None."""
        return next((s for s in self.segments if s.subnet_of(address)), None)


class Phase(Enum):
    """What the disk keeps of an endpoint's life; `life` has the whole of it."""

    CREATED = "created"
    JOINED = "joined"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local container's attachment point."""

    id: EndpointId
    network: NetworkId
    interfaces: tuple[Interface, ...]
    """Its addresses with the prefix length of their subnets: IPv4 first, then IPv6."""
    mac: Mac
    phase: Phase = Phase.CREATED
    sandbox: str = ""
    """The container's namespace, by the path that the engine said at Join; it may come only after that."""
    claimed: int = 0
    """The number of its claim, see `state.claim_number`; 0 if a version made it that did not say so. Of two
    hosts with one address, the higher number counts where no store can tell which claim came later."""
    multicast: bool = False
    """Whether multicast for which the container chooses no interface leaves by this one."""

    @property
    def addresses(self) -> frozenset[Address]:
        """Its addresses alone."""
        return frozenset(interface.ip for interface in self.interfaces)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host's endpoint as this host forwards to it."""

    mac: Mac
    vtep: Address
    node: NodeId
    """Empty for a row adopted from the kernel after a restart, whose node is not known yet."""


@dataclass(frozen=True, slots=True)
class PeerNode:
    """Another host. *stale_since* is when its lease was seen to be gone (monotonic seconds)."""

    vtep: Address
    stale_since: float | None = None
    mtu: int | None = None
    """Its underlay's MTU; None from a version that does not say."""


@dataclass(frozen=True, slots=True)
class Peers:
    """All that this host knows of others. Soft state: never on disk, taken from the control plane."""

    nodes: Mapping[NodeId, PeerNode] = field(default_factory=lambda: MappingProxyType({}))
    entries: Mapping[NetworkId, Mapping[Address, Peer]] = field(default_factory=lambda: MappingProxyType({}))
    synced: frozenset[NetworkId] = frozenset()
    """Networks whose whole table was seen since this process started."""
    latest: int = 0
    """The highest number of a claim that was seen since then."""


@dataclass(frozen=True, slots=True)
class Host:
    """This host: an identity that lasts as long as what it was made on, and its VTEP address once known."""

    id: NodeId
    vtep: Address | None = None
    swarm_port: int | None = None
    """The Swarm's UDP port for VXLAN (``docker swarm init --data-path-port``), as a manager's engine said
    last. On disk, so that a leader need not ask before it answers."""
    member: str = ""
    """What the identity was made on: a Swarm's node, or a machine. Empty if a version made it that did not
    say so."""
    path_mtu: int | None = None
    """The underlay's MTU that carries to every host of the Swarm, as far as known; None: this host's own. On
    disk, so that a restart changes nothing."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """What the kernel says about the path to other hosts: its device, and that one's MTU."""

    device: str
    mtu: int
    has_vtep: bool = True
    """Whether the VTEP address is on this host. If not, it is a router that translates it (1:1 NAT)."""
