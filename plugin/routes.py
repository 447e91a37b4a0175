"""The table of the plugin's methods, and the one way that leads through it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Response, request
from werkzeug.exceptions import ClientDisconnected

from driver.wish.errors import BadRequest
from plugin import wire
from plugin.errors import CONTENT_TYPE
from plugin.ipam_driver import IpamDriver
from plugin.network_driver import NetworkDriver

log = logging.getLogger(__name__)

_R = TypeVar("_R", bound=wire.Request)


@dataclass(frozen=True, slots=True)
class Route:
    """The model of a method's body and the handler that gets it; without a model there is no body."""

    model: type[wire.Request] | None
    handle: Callable[[Any], wire.Answer]


def table(network: NetworkDriver, ipam: IpamDriver) -> Mapping[str, Route]:
    """Every method that the engine may call."""
    return {
        "Plugin.Activate": _bare(wire.ActivateAnswer),
        "NetworkDriver.GetCapabilities": _bare(network.get_capabilities),
        "NetworkDriver.AllocateNetwork": _route(wire.AllocateNetworkRequest, network.allocate_network),
        "NetworkDriver.FreeNetwork": _route(wire.NetworkRequest, network.free_network),
        "NetworkDriver.GwAllocCheck": _route(wire.GwAllocCheckRequest, network.gw_alloc_check),
        "NetworkDriver.CreateNetwork": _route(wire.CreateNetworkRequest, network.create_network),
        "NetworkDriver.DeleteNetwork": _route(wire.NetworkRequest, network.delete_network),
        "NetworkDriver.CreateEndpoint": _route(wire.CreateEndpointRequest, network.create_endpoint),
        "NetworkDriver.DeleteEndpoint": _route(wire.EndpointRequest, network.delete_endpoint),
        "NetworkDriver.EndpointOperInfo": _route(wire.EndpointRequest, network.endpoint_oper_info),
        "NetworkDriver.Join": _route(wire.JoinRequest, network.join),
        "NetworkDriver.Leave": _route(wire.EndpointRequest, network.leave),
        "NetworkDriver.ProgramExternalConnectivity": _route(wire.EndpointRequest, network.ignore),
        "NetworkDriver.RevokeExternalConnectivity": _route(wire.EndpointRequest, network.ignore),
        "NetworkDriver.DiscoverNew": _route(wire.DiscoverRequest, network.discover_new),
        "NetworkDriver.DiscoverDelete": _route(wire.DiscoverRequest, network.discover_delete),
        "IpamDriver.GetCapabilities": _bare(ipam.get_capabilities),
        "IpamDriver.GetDefaultAddressSpaces": _bare(ipam.get_default_address_spaces),
        "IpamDriver.RequestPool": _route(wire.RequestPoolRequest, ipam.request_pool),
        "IpamDriver.ReleasePool": _route(wire.PoolRequest, ipam.release_pool),
        "IpamDriver.RequestAddress": _route(wire.RequestAddressRequest, ipam.request_address),
        "IpamDriver.ReleaseAddress": _route(wire.ReleaseAddressRequest, ipam.release_address),
    }


def _route(model: type[_R], handle: Callable[[_R], wire.Answer]) -> Route:
    return Route(model, handle)


def _bare(handle: Callable[[], wire.Answer]) -> Route:
    return Route(None, lambda _: handle())


def dispatch(method: str, route: Route) -> Response:
    """Parse, call, answer. Whatever goes wrong is raised; `plugin.errors` turns it into an answer."""
    started = time.perf_counter()
    parsed = route.model.model_validate_json(_body()) if route.model else None
    answer = route.handle(parsed)
    if log.isEnabledFor(logging.DEBUG):
        ids = parsed.ids() if parsed else ""
        log.debug("%s %s took %.1f ms", method, ids, (time.perf_counter() - started) * 1000)
    return Response(answer.model_dump_json(exclude_none=True), content_type=CONTENT_TYPE)


def _body() -> bytes:
    """Read the request's body, whatever its Content-Type says: the engine sends none.

    Raises BadRequest for an empty one, and when the sender stops in the middle.
    """
    try:
        body = request.get_data(cache=False)
    except (OSError, ClientDisconnected) as error:
        raise BadRequest("request body: it stopped coming; nothing was done") from error
    # gunicorn passes on what it had when the sender hung up, and that may be valid by chance.
    if len(body) < (request.content_length or 0):
        raise BadRequest("request body: it stopped coming; nothing was done")
    if not body.strip():
        # A retry reuses a reader that the first attempt has emptied (moby pkg/plugins/client.go:
        # callWithRetry). Defaults in its place would do harm.
        raise BadRequest("request body: it is empty, as in a retry by the engine; nothing was done")
    return body
