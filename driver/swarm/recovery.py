"""Recovers networks and containers whose records were lost, from the kernel and the engine's answers.

It looks once, at each start, as soon as the engine's API is up; until then nothing that containers use is
removed (reconcile.networks). A call about an unknown network waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

from driver.swarm.docker_api import DockerApi, EngineAway
from driver.wish.errors import DriverError
from driver.wish.model import Phase, Subnet
from driver.wish.remains import Remains, Told, recovered, with_sandboxes
from driver.wish.state import State
from driver.wish.values import VXLAN_PORT, Address, EndpointId, NetworkId, Prefix, parse_mac
from driver.wish.wish import Wish
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_RETRY: Final = 1.0
"""Seconds between attempts while the engine's API is away."""
_SEARCH: Final = 60.0
"""Seconds of asking for the namespaces of containers that start or end just now."""
_PATIENCE: Final = 5.0
"""Seconds that a call waits. The engine may be waiting for it, with its API not up yet."""
_STOP: Final = 1.0
"""Seconds that an answer is waited for at the end."""


@dataclass(frozen=True, slots=True)
class LostPool:
    """A subnet whose addresses our IPAM driver gives out, as the engine knows it."""

    prefix: Prefix
    sub_pool: Prefix | None
    gateway: Address | None
    taken: Collection[Address]


class Recovery:
    """A thread that looks once for what the wish has lost."""

    def __init__(
        self,
        wish: Wish,
        docker: DockerApi,
        remains: Callable[[], Mapping[NetworkId, Remains]],
        driver: Callable[[], str],
        restore_pool: Callable[[LostPool], None],
        *,
        over: Callable[[], None],
        in_swarm: bool = False,
        default_port: int = VXLAN_PORT,
    ) -> None:
        """*remains* is what the kernel had at the start; *driver* asks for our name, or raises EngineAway.

        Only with *in_swarm* are networks of a Swarm ours; an engine that has left one may still list them.
        *restore_pool* opens a pool unless it is open. *over* is called when all that can be recovered is.
        """
        self._wish = wish
        self._docker = docker
        self._remains = remains
        self._driver = driver
        self._restore_pool = restore_pool
        self._tell_over = over
        self._in_swarm = in_swarm
        self._default_port = default_port
        self._over = threading.Event()
        self._search_until = 0.0
        self._complained = False
        self._thread = Supervised("lost-state", self._turn)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread,)

    def start(self) -> None:
        """Begin to ask the engine, which need not be up yet."""
        self._thread.start()

    def stop(self) -> None:
        """End; what waits goes on."""
        self._over.set()
        self._thread.stop(_STOP)

    def is_missing_containers(self) -> bool:
        """Tell whether containers of this host have not been recovered yet."""
        return not self._over.is_set() and any(found.endpoints for found in self._remains().values())

    def wait(self, timeout: float = _PATIENCE) -> None:
        """Wait until all that can be recovered is, or *timeout* seconds have passed."""
        self._over.wait(timeout)

    def _turn(self) -> float:
        try:
            if not self._over.is_set():
                self._recover()
                self._over.set()
                self._tell_over()
                self._search_until = time.monotonic() + _SEARCH
            done = self._find_sandboxes() or time.monotonic() > self._search_until
        except EngineAway as away:
            self._complain(away)
            return _RETRY
        if done:
            self._thread.end()
        return _RETRY

    def _complain(self, away: EngineAway) -> None:
        """Warn, once, if containers are missing; the engine may well come up after us."""
        level = logging.WARNING if self.is_missing_containers() and not self._complained else logging.DEBUG
        log.log(level, "lost records are recovered when the engine tells its networks: %s", away)
        self._complained = self._complained or level == logging.WARNING

    def _recover(self) -> None:
        driver, remains = self._driver(), self._remains()
        for listed in self._docker.list("networks"):
            network = NetworkId(str(listed.get("Id")))
            if listed.get("Scope") == "swarm" and not self._in_swarm:
                continue
            if listed.get("Driver") == driver:
                self._recover_network(listed, remains.get(network))
            if (listed.get("IPAM") or {}).get("Driver") == driver and listed.get("Scope") == "local":
                self._recover_pools(network, listed)

    def _recover_network(self, listed: Mapping[str, Any], remains: Remains | None) -> None:
        """Bring one network back; trouble with it stops no other."""
        before = self._wish.state
        try:
            containers = self._containers(str(listed["Id"])) if remains else {}
            told = read_network(listed, containers)
            step = partial(recovered, told=told, remains=remains, default_port=self._default_port)
            self._wish.change(lambda state: step(state, now=time.monotonic()))
        except (DriverError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("network %s: its lost record cannot be recovered: %s", listed.get("Id"), error)
            return
        if told.network in self._wish.state.networks and told.network not in before.networks:
            count = len(remains.endpoints) if remains else 0
            log.warning("network %s: its record was lost: recovered, with %d containers", told.network, count)

    def _recover_pools(self, network: NetworkId, listed: Mapping[str, Any]) -> None:
        """Bring back what our IPAM driver gave to a network of this host.

        Not what it gave as the Swarm's leader: the engine lists no containers that `docker run` attached.
        """
        here = {a for e in self._wish.state.endpoints_of(network) for a in e.addresses}
        try:
            for pool in read_pools(listed, here):
                self._restore_pool(pool)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("network %s: its pools cannot be recovered: %s", network, error)

    def _find_sandboxes(self) -> bool:
        """Ask for the namespaces of containers that lack them, for VIPs; return whether none is left.

        Not before the networks are there: the engine does not describe a container while it waits for us.
        """
        lacking = _without_sandbox(self._wish.state)
        for network in {network for network, _ in lacking}:
            for container, endpoint in self._containers(network).items():
                if (network, EndpointId(str(endpoint.get("EndpointID")))) in lacking:
                    with suppress(EngineAway):
                        self._note_sandbox(container, EndpointId(str(endpoint["EndpointID"])))
        return not _without_sandbox(self._wish.state)

    def _note_sandbox(self, container: str, endpoint: EndpointId) -> None:
        sandbox = self._docker.sandbox(container)
        if sandbox:
            self._wish.change(partial(with_sandboxes, sandboxes={endpoint: sandbox}))

    def _containers(self, network: str) -> Mapping[str, Mapping[str, Any]]:
        return self._docker.network(network).get("Containers") or {}


def read_network(listed: Mapping[str, Any], containers: Mapping[str, Mapping[str, Any]]) -> Told:
    """Read what the engine answers about a network and its containers here (its API: NetworkInspect).

    Raises ValueError, LookupError, TypeError, AttributeError or BadRequest for what is not an answer.
    """
    configs = (listed.get("IPAM") or {}).get("Config") or []
    return Told(
        network=NetworkId(str(listed["Id"])),
        subnets=tuple(_subnet(config) for config in configs),
        options=dict(listed.get("Options") or {}),
        internal=listed.get("Internal") is True,
        of_swarm=listed.get("Scope") == "swarm",
        macs={
            EndpointId(str(one["EndpointID"])): parse_mac("MacAddress", str(one["MacAddress"]))
            for one in containers.values()
            if one.get("EndpointID") and one.get("MacAddress")
        },
    )


def read_pools(listed: Mapping[str, Any], taken: Collection[Address]) -> Iterator[LostPool]:
    """Read a network's pools from what the engine answers about it; raises like `read_network`."""
    for config in (listed.get("IPAM") or {}).get("Config") or []:
        subnet = _subnet(config)
        sub_pool = ip_network(config["IPRange"]) if config.get("IPRange") else None
        kept = {*subnet.reserved, *(address for address in taken if address in subnet.prefix)}
        yield LostPool(subnet.prefix, sub_pool, subnet.gateway, kept)


def _subnet(config: Mapping[str, Any]) -> Subnet:
    """Where the engine does not name the gateway, that is the first address (moby libnetwork/network.go)."""
    prefix = ip_network(config["Subnet"])
    gateway = config.get("Gateway")
    aux = config.get("AuxiliaryAddresses") or {}
    chosen = ip_interface(gateway).ip if gateway else _first(ip_network(config.get("IPRange") or prefix))
    return Subnet(prefix, chosen, frozenset(map(ip_address, aux.values())))


def _first(prefix: Prefix) -> Address:
    return prefix[1] if prefix.num_addresses > 2 else prefix[0]


def _without_sandbox(state: State) -> Collection[tuple[NetworkId, EndpointId]]:
    joined: Iterator[Any] = (e for e in state.receivers() if e.phase is Phase.JOINED and not e.sandbox)
    return {(e.network, e.id) for e in joined if e.id not in state.joining}
