"""The two modes of a host: by itself, and in a Swarm. All that differs between them in the use cases.

They differ in who gives out addresses and VNIs. By itself a host does, so it refuses what is taken. In a
Swarm the leader does, the nodes do as they are told, and other hosts must be able to send to this one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from driver.pace import Pace
from driver.wish.errors import Unsupported
from driver.wish.model import Endpoint, Host, Subnet
from driver.wish.options import check_subnets
from driver.wish.state import State, vnis_in_use
from driver.wish.values import Address, NetworkId, Vni, is_of_a_host, is_of_one_host

NETWORK_PACE = 0.2, 1.0, 10.0
"""Seconds between two answers to CreateNetwork in a Swarm, at least and at most; the longest wait of one.

The engine joins the network's gossip upon each. Before version 29.6, an engine that asks another for two
networks at once, or is asked by it at the same time, misses an answer and hangs for 30 s: longer than a
container's start may take (moby#52862).
"""
_MENDED_ENGINE = 29, 6
"""The first version that does not."""


class Mode(Protocol):
    """The decisions that depend on the mode, which is `Alone` or `InSwarm`."""

    scope: str
    """How far networks reach, in the engine's words; it asks once."""
    end: str
    """What the host has done when the mode does not last."""

    def lasts(self) -> bool:
        """Tell whether this is still the right mode; if not, the process must be restarted."""

    def check_maker(self, state: State, network: NetworkId) -> None:
        """Raise Unsupported for a network that its maker should not have made."""

    def check_subnets(self, subnets: Sequence[Subnet]) -> None:
        """Raise BadRequest for subnets that one network cannot have."""

    def versions(self, network: NetworkId) -> Collection[int]:
        """Return the versions of IP that containers of *network* are served with."""

    def tells_later(self, network: NetworkId) -> bool:
        """Tell whether a refusal of *network* reaches a user only when a container wants it (ADR 5)."""

    def taken_vnis(self, state: State, network: NetworkId, *, asked: bool) -> Collection[Vni]:
        """Return the VNIs that *network* cannot have; *asked* tells whether the user named its own."""

    def check_host(self, host: Host) -> None:
        """Raise Unsupported when containers cannot be reached as they should be."""

    def holder(self, state: State, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the endpoint that keeps others from having *address*."""

    def await_turn(self) -> None:
        """Wait until the engine may continue with the network that it has made."""


class Alone:
    """A host by itself: it gives out addresses and VNIs, and what is taken is refused."""

    scope = "local"
    end = "joined a Swarm"

    def __init__(self, lasts: Callable[[], bool] = lambda: True) -> None:
        """*lasts* tells whether the host is still by itself."""
        self.lasts = lasts

    def check_maker(self, state: State, network: NetworkId) -> None:
        """Accept any: this host's engine made it."""

    def check_subnets(self, subnets: Sequence[Subnet]) -> None:
        """Raise BadRequest for subnets that one network cannot have."""
        check_subnets(subnets, swarm=False)

    def versions(self, network: NetworkId) -> Collection[int]:
        """Return both."""
        return 4, 6

    def tells_later(self, network: NetworkId) -> bool:
        """Return False: who makes a network waits for the answer."""
        return False

    def taken_vnis(self, state: State, network: NetworkId, *, asked: bool) -> Collection[Vni]:
        """Return the VNIs of the other networks; what remains of a Swarm's network yields to the user."""
        return vnis_in_use(state, besides=network, asked=asked)

    def check_host(self, host: Host) -> None:
        """Accept any host: its networks need not reach others."""

    def holder(self, state: State, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the endpoint that has *address*."""
        return state.holder(network, address)

    def await_turn(self) -> None:
        """Return at once: nobody else hears of the network."""


class InSwarm:
    """A node of a Swarm, whose leader gives out addresses and VNIs."""

    scope = "global"
    end = "left the Swarm"

    def __init__(self, lasts: Callable[[], bool] = lambda: True) -> None:
        """*lasts* tells whether the host is still in a Swarm."""
        self.lasts = lasts
        self._pace = Pace(*NETWORK_PACE)
        self._engine = 0, 0

    def note_engine(self, version: tuple[int, int]) -> None:
        """Learn the engine's version; until then it is taken for an old one."""
        self._engine = version

    def check_maker(self, state: State, network: NetworkId) -> None:
        """Raise Unsupported for what an engine made alone, as it has not asked yet who makes networks now.

        It asks a second or two after our start. Networks from before the Swarm are known.
        """
        if is_of_one_host(network) and network not in state.networks:
            raise Unsupported(
                f"network {network[:12]}: this host has just joined a Swarm, and its engine would make the "
                "network for this host alone: try again in a few seconds, on a manager"
            )

    def check_subnets(self, subnets: Sequence[Subnet]) -> None:
        """Raise BadRequest for subnets that one network cannot have, IPv6 among them."""
        check_subnets(subnets, swarm=True)

    def versions(self, network: NetworkId) -> Collection[int]:
        """Return IPv4 alone for the Swarm's networks.

        With `--ipv6`, each engine from 27 on draws an IPv6 subnet of its own, of which no other node knows
        (moby#43615). The built-in overlay leaves that aside as well.
        """
        return (4, 6) if is_of_one_host(network) else (4,)

    def tells_later(self, network: NetworkId) -> bool:
        """Return True for the Swarm's networks: an engine makes one for a task and keeps errors."""
        return not is_of_one_host(network)

    def taken_vnis(self, state: State, network: NetworkId, *, asked: bool) -> Collection[Vni]:
        """Return none: what the leader has chosen is not questioned."""
        return ()

    def check_host(self, host: Host) -> None:
        """Raise Unsupported when the other hosts cannot be told where to send."""
        if host.vtep is None:
            raise Unsupported(
                "the VTEP address of this host is not known: the engine announces it while the node is in a "
                "Swarm; wait for it, or set PYOVERLAY_VTEP to one of the host's addresses"
            )
        if not is_of_a_host(host.vtep):
            raise Unsupported(
                f"this node advertises {host.vtep}, at which no other host reaches it: leave the Swarm and "
                "enter it again with an address of this host (docker swarm init --advertise-addr ADDRESS, or "
                "docker swarm join), or set PYOVERLAY_VTEP to that address"
            )

    def holder(self, state: State, network: NetworkId, address: Address) -> Endpoint | None:
        """Return the endpoint that has *address* in a network from before the Swarm, and None in the Swarm's.

        There the leader decides, and an unclean stop leaves records of dead containers here.
        """
        return state.holder(network, address) if is_of_one_host(network) else None

    def await_turn(self) -> None:
        """Let an engine that needs it join one network's gossip at a time (ADR 13)."""
        if self._engine < _MENDED_ENGINE:
            self._pace.await_turn()
