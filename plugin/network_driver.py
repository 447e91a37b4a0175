"""The NetworkDriver methods: wire in, one call of the overlay, wire out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from driver.wish.model import Subnet
from driver.wish.values import Address, Interface, Mac
from plugin import wire
from plugin.errors import sentence

if TYPE_CHECKING:
    from driver.overlay import Attachment

log = logging.getLogger(__name__)

NEXT_HOP, CONNECTED = 0, 1
"""RouteType (moby `libnetwork/types`)."""
NODE_DISCOVERY = 1
"""DiscoveryType of hosts (moby `libnetwork/discoverapi`); the others carry the engine's own keys."""


class NetworkCalls(Protocol):
    """What the edge asks of the overlay; `driver.overlay.Overlay` is the real one."""

    @property
    def scope(self) -> str:
        """How far networks reach: "local" or "global"."""

    def allocate_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet]
    ) -> Mapping[str, str]:
        """Choose what all nodes must agree on; return the options that every node gets."""

    def free_network(self, network: str) -> None:
        """Forget an allocation."""

    def check_network(self, options: Mapping[str, str]) -> None:
        """Refuse options that CreateNetwork would refuse."""

    def create_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet], *, internal: bool
    ) -> None:
        """Have a network on this host."""

    def delete_network(self, network: str) -> None:
        """Have it no longer."""

    def create_endpoint(
        self,
        network: str,
        endpoint: str,
        interfaces: Sequence[Interface],
        mac: Mac | None,
        options: Mapping[str, object],
    ) -> Mac | None:
        """Record an endpoint; return the MAC that the engine must be told, if any."""

    def delete_endpoint(self, network: str, endpoint: str) -> None:
        """Have it no longer."""

    def join(self, network: str, endpoint: str, sandbox: str) -> Attachment:
        """Make the device that goes into the container."""

    def leave(self, network: str, endpoint: str) -> None:
        """Expect the device back."""

    def node_discovered(self, address: Address, *, is_self: bool) -> None:
        """Hear of a host."""

    def node_lost(self, address: Address) -> None:
        """Hear that a host is gone, perhaps for a while."""


class NetworkDriver:
    """Handlers, one for each method."""

    def __init__(self, overlay: NetworkCalls) -> None:
        self._overlay = overlay

    def get_capabilities(self) -> wire.NetworkCapabilities:
        """Answer at once and always the same: this is the plugin's registration."""
        return wire.NetworkCapabilities(Scope=self._overlay.scope, ConnectivityScope=self._overlay.scope)

    def allocate_network(self, request: wire.AllocateNetworkRequest) -> wire.AllocateNetworkAnswer:
        """Answer the options that replace the user's on every node."""
        options = self._overlay.allocate_network(request.NetworkID, request.Options, request.subnets)
        return wire.AllocateNetworkAnswer(Options=dict(options))

    def free_network(self, request: wire.NetworkRequest) -> wire.Answer:
        """Forget an allocation."""
        self._overlay.free_network(request.NetworkID)
        return wire.Answer()

    def gw_alloc_check(self, request: wire.GwAllocCheckRequest) -> wire.GwAllocAnswer:
        """Refuse wrong options before any address is allocated."""
        self._overlay.check_network(request.Options.generic)
        return wire.GwAllocAnswer()

    def create_network(self, request: wire.CreateNetworkRequest) -> wire.Answer:
        """Have a network on this host."""
        self._overlay.create_network(
            request.NetworkID, request.Options.generic, request.subnets, internal=request.Options.internal
        )
        return wire.Answer()

    def delete_network(self, request: wire.NetworkRequest) -> wire.Answer:
        """Have a network no longer."""
        self._overlay.delete_network(request.NetworkID)
        return wire.Answer()

    def create_endpoint(self, request: wire.CreateEndpointRequest) -> wire.CreateEndpointAnswer:
        """Answer the MAC only if the request had none: the engine takes an echo for a change."""
        wanted = request.Interface
        mac = self._overlay.create_endpoint(
            request.NetworkID, request.EndpointID, wanted.interfaces, wanted.MacAddress, request.Options
        )
        if mac is None or wanted.MacAddress is not None:
            return wire.CreateEndpointAnswer()
        return wire.CreateEndpointAnswer(Interface=wire.CreatedInterface(MacAddress=mac))

    def delete_endpoint(self, request: wire.EndpointRequest) -> wire.Answer:
        """Have an endpoint no longer."""
        self._overlay.delete_endpoint(request.NetworkID, request.EndpointID)
        return wire.Answer()

    def endpoint_oper_info(self, _: wire.EndpointRequest) -> wire.OperInfoAnswer:
        """Answer at once: the engine asks this several times for each container that starts."""
        return wire.OperInfoAnswer()

    def join(self, request: wire.JoinRequest) -> wire.JoinAnswer:
        """Answer the device for the container and its routes to the network's other subnets."""
        attachment = self._overlay.join(request.NetworkID, request.EndpointID, request.SandboxKey)
        return wire.JoinAnswer(
            InterfaceName=wire.Device(SrcName=attachment.interface),
            StaticRoutes=tuple(
                wire.StaticRoute(
                    Destination=route.destination,
                    NextHop=route.next_hop,
                    RouteType=NEXT_HOP if route.next_hop else CONNECTED,
                )
                for route in attachment.routes
            ),
        )

    def leave(self, request: wire.EndpointRequest) -> wire.Answer:
        """Expect the device back; it is deleted by DeleteEndpoint."""
        self._overlay.leave(request.NetworkID, request.EndpointID)
        return wire.Answer()

    def ignore(self, _: wire.EndpointRequest) -> wire.Answer:
        """Succeed: published ports and egress are docker_gwbridge's, as Join answers no Gateway."""
        return wire.Answer()

    def discover_new(self, request: wire.DiscoverRequest) -> wire.Answer:
        """Pass on the address of a host."""
        if node := _node(request):
            self._overlay.node_discovered(node.Address, is_self=node.Self)
        return wire.Answer()

    def discover_delete(self, request: wire.DiscoverRequest) -> wire.Answer:
        """Pass on that a host is gone."""
        if node := _node(request):
            self._overlay.node_lost(node.Address)
        return wire.Answer()


def _node(request: wire.DiscoverRequest) -> wire.NodeDiscovery | None:
    """Return the host that *request* announces, or None: an empty hint is no error."""
    if request.DiscoveryType != NODE_DISCOVERY:
        log.info("discovery of type %d ignored: it is not about hosts", request.DiscoveryType)
        return None
    try:
        # Not strict: the value comes from a model, where an address is still a JSON string.
        return wire.NodeDiscovery.model_validate(request.DiscoveryData)
    except ValidationError as error:
        log.warning("discovery of a host ignored: %s", sentence(error))
        return None
