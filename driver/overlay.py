"""What the engine may ask of an overlay: the use cases behind the NetworkDriver methods.

Each call checks everything first, then changes the state in one transaction; the reconcilers
and the control plane follow. All calls may be repeated and may come in any order:
the engine retries, replays and forgets (moby libnetwork/drivers/remote/driver.go).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from driver.cluster.peering import Peering
from driver.kernel.names import container_name, port_name
from driver.mode import Alone, Mode
from driver.reconcile.desired import container_mtu
from driver.reconcile.networks import NetworkReconciler
from driver.wish.errors import BadRequest, Conflict, DriverError, KernelError, Unsupported
from driver.wish.model import Endpoint, Network, Subnet
from driver.wish.options import (
    REFUSED,
    NetworkOptions,
    build_segments,
    check_endpoint_options,
    check_subnets,
    choose_vnis,
    parse_network_options,
    refuse_later,
    segments_of,
)
from driver.wish.state import (
    State,
    claim_number,
    vnis_in_use,
    with_allocation,
    with_endpoint,
    with_join,
    with_join_answered,
    with_join_undone,
    with_leave,
    with_network,
    with_refusal,
    without_allocation,
    without_endpoint,
    without_network,
)
from driver.wish.values import (
    IPV6_MTU,
    VXLAN_PORT,
    Address,
    EndpointId,
    Interface,
    Mac,
    NetworkId,
    Prefix,
    Vni,
    mac_of,
    parse_id,
)
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

KERNEL_DEADLINE = 8.0
"""Seconds that a call waits for the kernel work that it asked for."""
ANNOUNCE_BUDGET = 2.0
"""Seconds that a Join waits until every host can know of the container; then it continues."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route for the container: *destination* via *next_hop*, which is on its subnet; None: it is there."""

    destination: Prefix
    next_hop: Address | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a container gets: the device to move into it, and routes."""

    interface: str
    routes: tuple[Route, ...] = ()


MULTICAST = Route(IPv4Network("224.0.0.0/4"))
"""Without it, groups leave by the default route, which is docker_gwbridge's, or not at all with `--internal`.

IPv6 needs none: its kernel gives each device a route to ff00::/8.
"""


class Overlay:
    """The driver's use cases. Safe for all threads."""

    def __init__(
        self,
        wish: Wish,
        reconciler: NetworkReconciler,
        peering: Peering,
        mode: Mode,
        *,
        fixed_port: int | None = None,
        fixed_vtep: bool = False,
        await_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        """*fixed_port* is the UDP port of new networks, also where the Swarm has another one.

        With *fixed_vtep*, the engine's announcements of this host's address are ignored.
        *await_recovery* waits, for a while, until networks whose records were lost are back.
        """
        self._wish = wish
        self._reconciler = reconciler
        self._peering = peering
        self._mode = mode
        self._fixed_port = fixed_port
        self._fixed_vtep = fixed_vtep
        self._await_recovery = await_recovery

    @property
    def scope(self) -> str:
        """How far networks reach, as the engine is told."""
        return self._mode.scope

    def allocate_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet]
    ) -> Mapping[str, str]:
        """Choose a Swarm network's VNIs; the answer replaces the user's options on every node.

        A refusal is part of the answer (see options.refuse_later). An answer of ours comes
        back after a change of leader and is honoured.
        """
        network_id = NetworkId(parse_id("NetworkID", network))
        asked = {name: value for name, value in options.items() if name != REFUSED}
        try:
            parsed = parse_network_options(asked, self._swarm_port())
            check_subnets(subnets, swarm=True)
            vnis = self._allocate(network_id, parsed, len(segments_of(subnets)), replay="vxlan_port" in asked)
        except (BadRequest, Conflict) as refusal:
            log.warning("network %s: %s", network, refusal)
            return refuse_later(asked, str(refusal))
        return {**asked, "vni": ",".join(map(str, vnis)), "vxlan_port": str(parsed.port)}

    def free_network(self, network: str) -> None:
        """Give a Swarm network's VNIs back; an unknown network is no error."""
        self._wish.change(lambda state: without_allocation(state, NetworkId(network)), lasting=False)

    def check_network(self, options: Mapping[str, str]) -> None:
        """Refuse bad options before anything has been made (GwAllocCheck, Engine 28 and newer).

        In a Swarm the engine asks for a task, as with create_network: there nobody would hear of it.
        """
        self._check_mode()
        if self._mode.scope == Alone.scope:
            self._parse(options)

    def create_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet], *, internal: bool
    ) -> None:
        """Record a network; the kernel sees nothing of it before the first Join.

        The same network again, changed or not, replaces the record: after an unclean stop
        the engine creates Swarm networks anew without having deleted them.

        What is wrong with a Swarm's network is said by create_endpoint: the engine would keep an answer
        from here to itself, and have the container wait for 20 s (ADR 5).
        """
        self._check_mode()
        network_id = NetworkId(parse_id("NetworkID", network))
        self._mode.check_maker(self._wish.state, network_id)
        try:
            self._make_network(network_id, options, subnets, internal=internal)
        except (BadRequest, Conflict) as refusal:
            if not self._mode.tells_later(network_id):
                raise
            log.warning("network %s is refused: %s", network, refusal)
            reason = str(refusal)
            self._wish.change(lambda state: with_refusal(state, network_id, reason))
        self._mode.await_turn()

    def _make_network(
        self, network: NetworkId, options: Mapping[str, str], subnets: Sequence[Subnet], *, internal: bool
    ) -> None:
        parsed = self._parse(options)
        served = self._served(network, subnets)
        self._mode.check_subnets(served)
        groups = segments_of(served)

        def transition(state: State) -> State:
            taken = self._mode.taken_vnis(state, network, asked=bool(parsed.vnis))
            vnis = choose_vnis(network, parsed.vnis, len(groups), taken)
            segments = build_segments(vnis, groups)
            made = Network(network, segments, parsed.port, parsed.mtu, parsed.underlay_mtu, internal)
            self._check_mtu(state, made)
            return with_network(state, made)

        self._wish.change(transition)

    def _served(self, network: NetworkId, subnets: Sequence[Subnet]) -> Sequence[Subnet]:
        """Leave out the subnets that only this host's engine knows of, unless there are no others."""
        versions = self._mode.versions(network)
        served = [subnet for subnet in subnets if subnet.prefix.version in versions]
        if left := [str(subnet.prefix) for subnet in subnets if served and subnet not in served]:
            log.warning(
                "network %s: IPv6 (%s) is not served in a Swarm (moby#24379); IPv4 works",
                network,
                ", ".join(left),
            )
        return served or subnets

    def delete_network(self, network: str) -> None:
        """Forget a network and all of it in the kernel; an unknown one is no error."""
        network_id = NetworkId(network)
        revision = self._wish.change(lambda state: without_network(state, network_id), lasting=False)
        self._best_effort(network_id, revision, "DeleteNetwork")

    def create_endpoint(
        self,
        network: str,
        endpoint: str,
        interfaces: Sequence[Interface],
        mac: Mac | None,
        options: Mapping[str, object],
    ) -> Mac | None:
        """Record an endpoint and announce it; return its MAC unless the engine gave one.

        Announced here, ahead of Join, the container is known everywhere when it starts.
        """
        network_id = NetworkId(network)
        endpoint_id = EndpointId(parse_id("EndpointID", endpoint))
        check_endpoint_options(options)
        if not interfaces:
            raise BadRequest.field("Interface.Address", "", "the network's IPAM driver must give an address")
        versions = self._mode.versions(network_id)
        served = tuple(i for i in interfaces if i.version in versions) or tuple(interfaces)
        chosen = mac or mac_of(served[0].ip)
        now = time.time_ns() // 1_000_000
        if not self._wish.state.names(network_id):
            self._await_recovery()

        def transition(state: State) -> State:
            known = state.network(network_id)
            _check_addresses(known, served)
            self._check_free(state, network_id, endpoint_id, served)
            former = state.endpoints.get(endpoint_id)
            # A repeated call is no new claim.
            claimed = former.claimed if former else claim_number(state, now)
            return with_endpoint(state, Endpoint(endpoint_id, network_id, served, chosen, claimed=claimed))

        self._wish.change(transition)
        return None if mac else chosen

    def delete_endpoint(self, network: str, endpoint: str) -> None:
        """Forget an endpoint; an unknown one is no error.

        Its veth pair is removed a little later: the kernel takes 20 ms to release a device, and no container
        should wait for that. The next Join, or DeleteNetwork, finds it gone.
        """
        endpoint_id = EndpointId(endpoint)
        self._wish.change(lambda state: without_endpoint(state, endpoint_id), lasting=False)

    def join(self, network: str, endpoint: str, sandbox: str) -> Attachment:
        """Make the container's interface, ready to be moved, and all that it needs to work.

        Raises KernelError when this host cannot provide it; then nothing half-made is left.
        """
        network_id, endpoint_id = NetworkId(network), EndpointId(endpoint)
        state = self._wish.state
        known = state.network(network_id)
        joined = state.endpoint(network_id, endpoint_id)
        self._mode.check_host(state.host)
        self._check_mtu(state, known)
        log.debug("endpoint %s joins sandbox %s", endpoint_id, sandbox)
        this = object()
        multicast, revision = self._begin_join(network_id, endpoint_id, sandbox, this)
        try:
            self._reconciler.wait_applied(network_id, revision, KERNEL_DEADLINE, port_name(endpoint_id))
        except KernelError:
            undone = self._wish.change(lambda s: with_join_undone(s, endpoint_id, this), lasting=False)
            self._best_effort(network_id, undone, "Join")
            raise
        self._announce(network_id, endpoint_id)
        self._wish.change(lambda s: with_join_answered(s, endpoint_id, this))
        routes = _routes(known, joined)
        return Attachment(container_name(endpoint_id), (*routes, MULTICAST) if multicast else routes)

    def _begin_join(
        self, network: NetworkId, endpoint: EndpointId, sandbox: str, join: object
    ) -> tuple[bool, int]:
        """Return whether the container's multicast leaves by *endpoint*, and the revision to wait for."""
        revision = self._wish.change(lambda s: with_join(s, network, endpoint, sandbox, join))
        placed = self._wish.state.endpoints.get(endpoint)
        return placed is not None and placed.multicast, revision

    def leave(self, network: str, endpoint: str) -> None:
        """Stop announcing an endpoint; the pair stays for the engine to move back.

        One that is not known, or has left, is no error.
        """
        self._wish.change(lambda state: with_leave(state, EndpointId(endpoint)), lasting=False)

    def node_discovered(self, address: Address, *, is_self: bool) -> None:
        """Learn this host's VTEP address from the engine; what it says about others is only a hint."""
        if is_self and not self._fixed_vtep:
            log.info("the engine announces this host as %s", address)
            self._wish.change(lambda state: replace(state, host=replace(state.host, vtep=address)))

    def node_lost(self, address: Address) -> None:
        """Take note; a peer's engine also says so when it only restarts, with its containers running."""
        log.info("the engine says that node %s is gone; the control plane decides", address)

    def in_use(self, prefix: Prefix, address: Address) -> bool:
        """Return whether a network with subnet *prefix* keeps *address* from others.

        A container has it, or the user has reserved it: that the IPAM driver is asked for an auxiliary
        address looks like any wish, but the network names it (moby libnetwork/network.go: ipamAllocate).
        """
        state = self._wish.state
        return any(
            subnet.prefix == prefix
            and (address in subnet.reserved or self._mode.holder(state, network.id, address) is not None)
            for network in state.networks.values()
            for segment in network.segments
            for subnet in segment.subnets
        )

    def _check_mode(self) -> None:
        """Refuse networks in the seconds between `docker swarm join` or `leave` and our own restart."""
        if not self._mode.lasts():
            raise Unsupported(
                f"this host has just {self._mode.end} and the plugin restarts for that: "
                "try again in a few seconds"
            )

    def _check_mtu(self, state: State, network: Network) -> None:
        """Refuse IPv6 where the containers' MTU is too small; the underlay's may have changed."""
        underlay = self._reconciler.underlay
        mtu = container_mtu(network, state.host, underlay)
        six = next((s.prefix for g in network.segments for s in g.subnets if s.prefix.version == 6), None)
        if six and mtu < IPV6_MTU:
            raise BadRequest.field(
                "subnet",
                str(six),
                f"IPv6 needs an MTU of {IPV6_MTU} bytes, and the containers would have {mtu}: "
                f"give a larger mtu option, raise the MTU of the underlay (here {underlay.mtu}, "
                f"to all hosts {state.host.path_mtu or underlay.mtu}), "
                "or use IPv4 subnets only",
            )

    def _check_free(
        self, state: State, network: NetworkId, endpoint: EndpointId, interfaces: Sequence[Interface]
    ) -> None:
        for interface in interfaces:
            service = state.services.get(network, {}).get(interface.ip)
            if service is not None and endpoint not in state.endpoints:
                # All hosts would take the address for the container's, and nobody would reach the service.
                raise Conflict(
                    f"address {interface.ip} is the virtual address of service {service.name}. When a "
                    "service's container is connected by hand, the engine chooses an address without "
                    "asking the Swarm: have the Swarm replace it, docker service update --force "
                    f"{service.name}"
                )
            holder = self._mode.holder(state, network, interface.ip)
            if holder is not None and holder.id != endpoint:
                raise Conflict(
                    f"address {interface.ip} is used by endpoint {holder.id[:12]} of the same network: "
                    "choose another"
                )

    def _parse(self, options: Mapping[str, str]) -> NetworkOptions:
        if REFUSED in options:
            raise BadRequest(options[REFUSED])
        return parse_network_options(options, self._fixed_port or VXLAN_PORT)

    def _swarm_port(self) -> int:
        """Return the UDP port that the leader gives to networks for which the user has not named one."""
        return self._fixed_port or self._wish.state.host.swarm_port or VXLAN_PORT

    def _allocate(
        self, network: NetworkId, parsed: NetworkOptions, segments: int, *, replay: bool
    ) -> tuple[Vni, ...]:
        """Choose and record VNIs as the leader; in a *replay* the given ones are a former leader's choice."""

        def step(state: State) -> tuple[State, tuple[Vni, ...]]:
            given = parsed.vnis or state.allocations.get(network, ())
            in_use = vnis_in_use(state, besides=network, asked=bool(parsed.vnis))
            used = () if replay and given else in_use
            vnis = choose_vnis(network, given, segments, used)
            return with_allocation(state, network, vnis), vnis

        return self._wish.decide(step)

    def _announce(self, network: NetworkId, endpoint: EndpointId) -> None:
        """Wait, within the budget, until others know us and the kernel knows what they have."""
        if not self._peering.wait_announced(network, endpoint, ANNOUNCE_BUDGET):
            log.warning("endpoint %s: the store cannot be reached; other hosts are told later", endpoint)
            return
        _, revision = self._wish.snapshot()
        try:
            self._reconciler.wait_applied(network, revision, KERNEL_DEADLINE)
        except KernelError as error:
            log.warning("endpoint %s: %s", endpoint, error)

    def _best_effort(self, network: NetworkId, revision: int, call: str) -> None:
        """Wait for clean-up; the engine would not call again, so our own retries must do it."""
        try:
            self._reconciler.wait_applied(network, revision, KERNEL_DEADLINE)
        except DriverError as error:
            log.warning("%s: network %s: %s; this will be tried again", call, network, error)


def _check_addresses(network: Network, interfaces: Sequence[Interface]) -> None:
    segment = network.segment_of(interfaces[0].ip)
    for interface in interfaces:
        if segment is None or segment.subnet_of(interface.ip) is None:
            subnets = ", ".join(str(s.prefix) for seg in network.segments for s in seg.subnets)
            raise BadRequest.field(
                "Interface.Address", str(interface), f"the network's subnets are {subnets}"
            )


def _routes(network: Network, endpoint: Endpoint) -> tuple[Route, ...]:
    """Return the ways to the network's other subnets, by the gateways of the endpoint's own."""
    subnets = [subnet for segment in network.segments for subnet in segment.subnets]
    own = [s for s in subnets if any(i.ip in s.prefix for i in endpoint.interfaces)]
    gateways = {s.prefix.version: s.gateway for s in own if s.gateway is not None}
    return tuple(
        Route(other.prefix, gateways[other.prefix.version])
        for other in subnets
        if other not in own and other.prefix.version in gateways
    )
