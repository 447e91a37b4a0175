"""What is written in the store: the names of the keys and the form of the values.

::

    /pyoverlay/v1/nodes/<node>                    under the node's lease
    /pyoverlay/v1/endpoints/<network>/<address>   without one: a hiccup of a lease removes nobody

Values are JSON objects. A reader ignores fields that it does not know, so a newer host
may add some; a change that an older reader would get wrong needs a new version in the key.
"""

from __future__ import annotations

import json
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from socket import inet_aton, inet_ntoa
from typing import Final, TypeAlias

from driver.control import EndpointRecord, NodeRecord
from driver.errors import BadRequest
from driver.values import Address, EndpointId, NetworkId, NodeId, parse_id, parse_mac

ROOT: Final = "/pyoverlay/v1/"
NODES: Final = ROOT + "nodes/"
ENDPOINTS: Final = ROOT + "endpoints/"

Scope: TypeAlias = NetworkId | None
"""A part of the store that is read and watched as a whole: one network, or (None) the nodes."""


class Unreadable(Exception):
    """A key or a value that this version of the program cannot make sense of."""


def prefix(scope: Scope) -> str:
    """Return what the keys of *scope* begin with."""
    return NODES if scope is None else f"{ENDPOINTS}{scope}/"


def node_key(node: NodeId) -> str:
    """Return the key of a host."""
    return NODES + node


def endpoint_key(network: NetworkId, address: Address) -> str:
    """Return the key of an address."""
    return f"{prefix(network)}{address}"


def scope_of(key: str) -> Scope:
    """Return the scope that *key* belongs to; raise Unreadable for a key that is none of ours."""
    if key.startswith(NODES):
        return None
    network, slash, _ = key.removeprefix(ENDPOINTS).partition("/")
    if not key.startswith(ENDPOINTS) or not slash:
        raise Unreadable(f"{key} is no key of pyoverlay's")
    return NetworkId(network)


@lru_cache(maxsize=16)
def address_of(key: str) -> Address:
    """Return the address in an endpoint's key; raise Unreadable for another or a second spelling of it."""
    text = key.rpartition("/")[2]
    try:
        packed = inet_aton(text)
        if inet_ntoa(packed) == text:  # a tenth of the time, for nearly all that there are
            return IPv4Address(packed)
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text)
    except ValueError as error:
        raise Unreadable(f"{key}: {error}") from None
    if str(address) != text:
        raise Unreadable(f"{key}: the address is written {address}")
    return address


def encode_node(record: NodeRecord) -> str:
    """Return the value of a host's key."""
    return _dump({"vtep": str(record.vtep)})


def encode_endpoint(record: EndpointRecord) -> str:
    """Return the value of an address's key: equal records give equal text."""
    return _dump({"mac": record.mac, "node": record.node, "endpoint": record.endpoint})


def decode_node(key: str, value: str) -> NodeRecord:
    """Read a host's record; raise Unreadable when it is none."""
    fields = _load(key, value)
    try:
        node = NodeId(parse_id("node", key.removeprefix(NODES)))
        return NodeRecord(node, ip_address(_text(fields, "vtep")))
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


def decode_endpoint(key: str, value: str) -> EndpointRecord:
    """Read an address's record; raise Unreadable when it is none."""
    fields = _load(key, value)
    network = scope_of(key)
    try:
        return EndpointRecord(
            network=NetworkId(_shared_id("network", network or "")),
            address=address_of(key),
            mac=parse_mac("mac", _text(fields, "mac")),
            node=NodeId(_shared_id("node", _text(fields, "node"))),
            endpoint=EndpointId(parse_id("endpoint", _text(fields, "endpoint"))),
        )
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


@lru_cache(maxsize=4096)
def _shared_id(field: str, text: str) -> str:
    """Parse an id that thousands of records have: they share one text."""
    return parse_id(field, text)


def _dump(fields: dict[str, str]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _load(key: str, value: str) -> dict[str, object]:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{key}: {error}") from None
    if not isinstance(fields, dict):
        raise Unreadable(f"{key}: not a JSON object")
    return fields


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")
    return value
