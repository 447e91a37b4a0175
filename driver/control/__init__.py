"""The control plane: how hosts tell each other where containers are.

Both directions carry whole values, never changes: a host says all that it has
(Publication), and is told all that the others have (View). What became of an earlier
call, a lost event or a restarted store is thereby never the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from driver.values import Address, EndpointId, Mac, NetworkId, NodeId


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A host that is there: stored under a lease, after all of its endpoints."""

    id: NodeId
    vtep: Address


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """Where an address is. One record per network and address: a later claim replaces an earlier one."""

    network: NetworkId
    address: Address
    mac: Mac
    node: NodeId
    endpoint: EndpointId


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service's virtual address in a network, and where it leads to. Written by the Swarm's leader."""

    network: NetworkId
    vip: Address
    name: str
    """For a person who looks."""
    backends: tuple[Address, ...]
    """In order of the addresses: the tasks that run and are well."""


Offer: TypeAlias = Mapping[NetworkId, frozenset[ServiceRecord]]
"""All services of some networks, as the Swarm's leader knows them."""


@dataclass(frozen=True, slots=True)
class Publication:
    """All that this host has to say, and the networks that it wants to hear about."""

    node: NodeRecord | None = None
    endpoints: frozenset[EndpointRecord] = frozenset()
    networks: frozenset[NetworkId] = frozenset()
    offer: Offer | None = field(default_factory=dict)
    """With None, what the store has of ours stays as it is."""


@dataclass(frozen=True, slots=True)
class View:
    """All that the store holds for the followed networks.

    A followed network appears in *endpoints* once its whole table has been read from the
    store that we are connected to, own records included. While *connected* is false the
    rest is the last known view, and nothing may be removed on its account.

    A network appears in *services* while its leader has said all that there is: while it does not,
    what was known before goes on.
    """

    connected: bool = False
    nodes: Mapping[NodeId, NodeRecord] = field(default_factory=dict)
    endpoints: Mapping[NetworkId, Mapping[Address, EndpointRecord]] = field(default_factory=dict)
    services: Mapping[NetworkId, Mapping[Address, ServiceRecord]] = field(default_factory=dict)


class ControlPlane(Protocol):
    """A store shared by hosts. Every back end passes tests/control/test_contract.py."""

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; *on_view* gets every new view, in order, from one thread of the back end."""

    def publish(self, wish: Publication) -> None:
        """Replace the wish; returns at once. The back end works until the store agrees with it.

        A record of ours that another host has overwritten is left to it, and put back when
        that host withdraws; a record that the store lost is put again.
        """

    def wait_published(self, timeout: float) -> bool:
        """Wait until the store agrees with the latest wish and every followed network was read.

        *timeout* is in seconds. Returns False when time ran out; while the store is away it
        returns False at once, because waiting would help nobody.
        """

    def stop(self, *, leave: bool) -> None:
        """End. With *leave*, first withdraw everything of ours (bounded to a few seconds)."""
