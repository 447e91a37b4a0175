"""The engine's side of the protocol: what it makes of an answer.

The rules are those of moby `pkg/plugins/client.go` (callWithRetry) and, below `daemon/libnetwork`, of
`drivers/remote/driver.go` and `ipams/remote/remote.go`, written again from their text, so that a mistake in
`plugin.wire` is not repeated here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

Object = Mapping[str, Any]

STRING, BOOL, OBJECT, LIST, INT = str, bool, dict, list, int

FIELDS: Mapping[str, Mapping[str, type]] = {
    "Plugin.Activate": {"Implements": LIST},
    "NetworkDriver.GetCapabilities": {"Scope": STRING, "ConnectivityScope": STRING, "GwAllocChecker": BOOL},
    "NetworkDriver.AllocateNetwork": {"Options": OBJECT},
    "NetworkDriver.GwAllocCheck": {"SkipIPv4": BOOL, "SkipIPv6": BOOL},
    "NetworkDriver.CreateEndpoint": {"Interface": OBJECT},
    "NetworkDriver.EndpointOperInfo": {"Value": OBJECT},
    "NetworkDriver.Join": {
        "InterfaceName": OBJECT,
        "Gateway": STRING,
        "GatewayIPv6": STRING,
        "StaticRoutes": LIST,
        "DisableGatewayService": BOOL,
    },
    "IpamDriver.GetCapabilities": {"RequiresMACAddress": BOOL, "RequiresRequestReplay": BOOL},
    "IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": STRING,
        "GlobalDefaultAddressSpace": STRING,
    },
    "IpamDriver.RequestPool": {"PoolID": STRING, "Pool": STRING, "Data": OBJECT},
    "IpamDriver.RequestAddress": {"Address": STRING, "Data": OBJECT},
}
"""The Go types of the answers' fields; Go's decoder refuses another type, and takes null for absent."""


def accept(method: str, request: Object | None, status: int, body: bytes) -> dict[str, Any]:
    """Take an answer as the engine would; AssertionError says why it would not."""
    assert status == 200, f"{method}: status {status} is a failure: {body.decode()}"
    assert body, f"{method}: an empty body is EOF to Go's decoder"
    answer = json.loads(body)
    assert isinstance(answer, dict), f"{method}: {answer!r} is not an object"
    for key in ("Err", "Error"):
        assert not answer.get(key), f"{method}: {answer[key]} with status 200"
    for key, kind in FIELDS.get(method, {}).items():
        assert answer.get(key) is None or type(answer[key]) is kind, f"{method}: {key} is {answer[key]!r}"
    if rule := RULES.get(method):
        rule(request or {}, answer)
    return answer


def refusal(body: bytes) -> str:
    """Return the text that the user sees for a status other than 200, for both kinds of reader."""
    answer = json.loads(body)
    assert isinstance(answer, dict)
    assert answer["Err"] == answer["Error"]
    assert isinstance(answer["Err"], str)
    assert answer["Err"]
    return answer["Err"]


def _capabilities(_: Object, answer: Object) -> None:
    assert answer["Scope"] in ("local", "global")
    assert answer["ConnectivityScope"] in ("", "local", "global")


def _allocated(_: Object, answer: Object) -> None:
    assert all(isinstance(value, str) for value in answer["Options"].values())


def _endpoint(request: Object, answer: Object) -> None:
    """The driver may add, never repeat (drivers/remote/driver.go: CreateEndpoint)."""
    asked, added = request.get("Interface") or {}, answer.get("Interface") or {}
    for key, value in added.items():
        assert not (value and asked.get(key)), f"driver modified interface {key}"
    if added.get("MacAddress"):
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", added["MacAddress"])
        assert not int(added["MacAddress"][:2], 16) & 1, "a multicast MAC"
    for key in ("Address", "AddressIPv6"):
        if added.get(key):
            ip_interface(added[key])


def _join(_: Object, answer: Object) -> None:
    """osl/interface_linux.go moves SrcName and calls it DstPrefix and a number."""
    name = answer["InterfaceName"]
    assert re.fullmatch(r"[^\s/:]{1,15}", name["SrcName"]), f"{name['SrcName']!r} cannot be a device"
    assert name["DstPrefix"], "the device would be called by a number only"
    # Allowed by the protocol, but it would take docker_gwbridge from the container.
    assert not answer.get("Gateway")
    assert not answer.get("GatewayIPv6")
    assert not answer.get("DisableGatewayService")
    for route in answer.get("StaticRoutes") or ():
        assert ip_network(route["Destination"]).prefixlen > 0, "a default route counts as a gateway"
        assert route["RouteType"] in (0, 1)
        assert bool(route.get("NextHop")) == (route["RouteType"] == 0)
        ip_address(route.get("NextHop") or "0.0.0.0")


def _spaces(_: Object, answer: Object) -> None:
    assert answer["LocalDefaultAddressSpace"] != answer["GlobalDefaultAddressSpace"]


def _pool(request: Object, answer: Object) -> None:
    assert answer["PoolID"]
    pool = ip_network(answer["Pool"])
    assert (pool.version == 6) == request["V6"]
    if request["Pool"] and int(ip_interface(request["Pool"]).ip):
        assert pool == ip_network(request["Pool"], strict=False)
    assert all(isinstance(value, str) for value in (answer.get("Data") or {}).values())


def _address(request: Object, answer: Object) -> None:
    assert "/" in answer["Address"], "no prefix length"
    address = ip_interface(answer["Address"])
    assert address.network.prefixlen < address.max_prefixlen, "a network of one address"
    assert request["Address"] in ("", str(address.ip))


RULES: Mapping[str, Callable[[Object, Object], None]] = {
    "NetworkDriver.GetCapabilities": _capabilities,
    "NetworkDriver.AllocateNetwork": _allocated,
    "NetworkDriver.CreateEndpoint": _endpoint,
    "NetworkDriver.Join": _join,
    "IpamDriver.GetDefaultAddressSpaces": _spaces,
    "IpamDriver.RequestPool": _pool,
    "IpamDriver.RequestAddress": _address,
}
