"""What hosts tell each other, as values: records of nodes, endpoints and services. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A host that is there: stored under a lease, after all of its endpoints."""

    id: NodeId
    vtep: Address
    mtu: int | None = None
    """Its underlay's MTU; None from a version that does not say."""


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """Where an address is. One record per network and address: a later claim replaces an earlier one."""

    network: NetworkId
    address: Address
    mac: Mac
    node: NodeId
    endpoint: EndpointId
    claimed: int = 0
    """The number of *node*'s claim: higher than all that it had seen; 0 when that is not known."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service's virtual address in a network, and where it leads to. Written by the Swarm's leader."""

    network: NetworkId
    vip: Address
    name: str
    """For people who look at the store."""
    backends: tuple[Address, ...]
    """The running, healthy tasks, ordered by address."""


Offer: TypeAlias = Mapping[NetworkId, frozenset[ServiceRecord]]
"""All services of some networks, as the Swarm's leader knows them."""


@dataclass(frozen=True, slots=True)
class Publication:
    """All that this host has to say, and the networks that it wants to hear about."""

    node: NodeRecord | None = None
    endpoints: frozenset[EndpointRecord] = frozenset()
    networks: frozenset[NetworkId] = frozenset()
    offer: Offer | None = field(default_factory=dict)
    """With None, our records in the store stay as they are."""


@dataclass(frozen=True, slots=True)
class View:
    """All that the store holds for the followed networks.

    A followed network appears in *endpoints* once its whole table has been read from the
    store that we are connected to, own records included. While *connected* is false the
    rest is the last known view, and nothing may be removed on its account.

    A network appears in *services* once its leader has published everything; until then, what was
    known before stays in force.
    """

    connected: bool = False
    nodes: Mapping[NodeId, NodeRecord] = field(default_factory=dict)
    endpoints: Mapping[NetworkId, Mapping[Address, EndpointRecord]] = field(default_factory=dict)
    services: Mapping[NetworkId, Mapping[Address, ServiceRecord]] = field(default_factory=dict)
