"""What is written in the store: the names of the keys and the form of the values.

::

    /pyoverlay/v1/nodes/<node>                    under the node's lease
    /pyoverlay/v1/endpoints/<network>/<address>   without one: a lease lost for a moment removes nobody
    /pyoverlay/v1/services/<network>/<node>/<vip> what a Swarm leader knows, without a lease
    /pyoverlay/v1/services/<network>/leader       whose services count: written after all of them

Values are JSON objects. A reader ignores fields that it does not know, so a newer host
may add some; a change that an older reader would get wrong needs a new version in the key.
Hosts of two versions share a store while they are upgraded one after another, so what was added later
is optional for the newer reader too:

* ``claimed`` of an endpoint: the number of its host's claim of the address, milliseconds since 1970 or more:
  see ``driver.wish.state.claim_number``. A record without it counts as earlier than all that have one; of two
  without, that of the host which puts it last stays.
* ``mtu`` of a node: the MTU of its underlay. What a node without it can take is only known by trying.
"""

from __future__ import annotations

import json
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from socket import inet_aton, inet_ntoa
from typing import Final, NewType

from driver.wish.errors import BadRequest
from driver.wish.records import EndpointRecord, NodeRecord, ServiceRecord
from driver.wish.values import Address, EndpointId, NetworkId, NodeId, is_of_a_host, parse_id, parse_mac

ROOT: Final = "/pyoverlay/v1/"

Scope = NewType("Scope", str)
"""A part of the store that is read and watched as a whole: the prefix of its keys."""

NODES: Final = Scope(ROOT + "nodes/")
NETWORKS: Final = Scope(ROOT)
"""All that is about networks, and the nodes."""
_ENDPOINTS: Final = ROOT + "endpoints/"
_SERVICES: Final = ROOT + "services/"
_LEADER: Final = "leader"
_TOO_HIGH: Final = 1 << 53
"""No number of a claim: what JSON's readers agree on ends there (RFC 8259, section 6)."""


class Unreadable(Exception):
    """A key or a value that this version of the program cannot make sense of."""


def endpoints_of(network: NetworkId) -> Scope:
    """Return where the endpoints of a network are."""
    return Scope(f"{_ENDPOINTS}{network}/")


def services_of(network: NetworkId) -> Scope:
    """Return where the services of a network are."""
    return Scope(f"{_SERVICES}{network}/")


def end_of(scope: Scope) -> str:
    """Return the first key after all those of *scope*."""
    return scope[:-1] + chr(ord(scope[-1]) + 1)


def is_services(scope: Scope) -> bool:
    """Tell whether *scope* holds services."""
    return scope.startswith(_SERVICES)


def network_of(scope: Scope) -> NetworkId:
    """Return the network that *scope* is about; the nodes are about none."""
    return NetworkId(scope.split("/")[4])


def node_key(node: NodeId) -> str:
    """Return the key of a host."""
    return NODES + node


def endpoint_key(network: NetworkId, address: Address) -> str:
    """Return the key of an address."""
    return f"{endpoints_of(network)}{address}"


def service_key(node: NodeId, record: ServiceRecord) -> str:
    """Return the key under which *node* says what it knows of a service."""
    return f"{services_of(record.network)}{node}/{record.vip}"


def leader_key(network: NetworkId) -> str:
    """Return the key that tells whose services count."""
    return f"{services_of(network)}{_LEADER}"


def is_leader_key(key: str) -> bool:
    """Tell whether *key* is one that tells whose services count."""
    return key.startswith(_SERVICES) and key.split("/")[5:] == [_LEADER]


def scope_of(key: str) -> Scope:
    """Return the scope that *key* belongs to; raise Unreadable for a key that is not ours."""
    if key.startswith(NODES):
        return NODES
    parts = key.split("/")
    if not key.startswith((_ENDPOINTS, _SERVICES)) or len(parts) < 6:
        raise Unreadable(f"{key} is not a pyoverlay key")
    return Scope("/".join(parts[:5]) + "/")


@lru_cache(maxsize=16)
def address_of(key: str) -> Address:
    """Return the address in an endpoint's key; raise Unreadable for any other or a non-canonical one."""
    text = key.rpartition("/")[2]
    try:
        packed = inet_aton(text)
        if inet_ntoa(packed) == text:  # a tenth of the time, and right for nearly all keys
            return IPv4Address(packed)
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text)
    except ValueError as error:
        raise Unreadable(f"{key}: {error}") from None
    if str(address) != text:
        raise Unreadable(f"{key}: the address must be written {address}")
    return address


def encode_node(record: NodeRecord) -> str:
    """Return the value of a host's key."""
    return _dump({"vtep": str(record.vtep), **({"mtu": record.mtu} if record.mtu else {})})


def encode_endpoint(record: EndpointRecord) -> str:
    """Return the value of an address's key: equal records give equal text."""
    claimed = {"claimed": record.claimed} if record.claimed else {}
    return _dump({"mac": record.mac, "node": record.node, "endpoint": record.endpoint, **claimed})


def encode_service(record: ServiceRecord) -> str:
    """Return the value of a service's key: equal records give equal text."""
    return _dump({"name": record.name, "backends": [str(backend) for backend in record.backends]})


def encode_leader(node: NodeId) -> str:
    """Return the value of the key that tells whose services count."""
    return _dump({"node": node})


def decode_node(key: str, value: str) -> NodeRecord:
    """Read a host's record; raise Unreadable when it is none."""
    fields = _load(key, value)
    try:
        node = NodeId(parse_id("node", key.removeprefix(NODES)))
        return NodeRecord(node, _vtep(_text(fields, "vtep")), _positive(fields, "mtu") or None)
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


def _vtep(text: str) -> Address:
    address = ip_address(text)
    if not is_of_a_host(address):
        raise ValueError(f"vtep: {text} is no address of another host")
    return address


def decode_endpoint(key: str, value: str) -> EndpointRecord:
    """Read an address's record; raise Unreadable when it is none."""
    fields = _load(key, value)
    network = network_of(scope_of(key))
    try:
        return EndpointRecord(
            network=NetworkId(_shared_id("network", network)),
            address=address_of(key),
            mac=parse_mac("mac", _text(fields, "mac")),
            node=NodeId(_shared_id("node", _text(fields, "node"))),
            endpoint=EndpointId(parse_id("endpoint", _text(fields, "endpoint"))),
            claimed=_positive(fields, "claimed"),
        )
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


@lru_cache(maxsize=4096)
def _shared_id(field: str, text: str) -> str:
    """Parse an id that thousands of records have: they share one string."""
    return parse_id(field, text)


def decode_service(key: str, value: str) -> ServiceRecord:
    """Read a service's record; raise Unreadable when it is none."""
    fields = _load(key, value)
    try:
        backends = fields.get("backends")
        if not isinstance(backends, list):
            raise ValueError("backends are missing")
        return ServiceRecord(
            network=NetworkId(parse_id("network", network_of(scope_of(key)))),
            vip=address_of(key),
            name=_text(fields, "name"),
            backends=tuple(ip_address(str(backend)) for backend in backends),
        )
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


def decode_leader(key: str, value: str) -> NodeId:
    """Read whose services count; raise Unreadable when it does not say."""
    fields = _load(key, value)
    try:
        return NodeId(parse_id("node", _text(fields, "node")))
    except (BadRequest, ValueError) as error:
        raise Unreadable(f"{key}: {error}") from None


def claimed_at(key: str, value: str) -> int:
    """Return when a record of a network was claimed, as `EndpointRecord.claimed`; 0 when it does not say."""
    try:
        return _positive(_load(key, value), "claimed")
    except Unreadable:
        return 0


def owner_of(key: str, value: str) -> NodeId:
    """Return the node that wrote a record of a network; raise Unreadable when that is unknown."""
    if is_leader_key(key):
        return decode_leader(key, value)
    if key.startswith(_SERVICES):
        return speaker_of(key)
    return decode_endpoint(key, value).node


def speaker_of(key: str) -> NodeId:
    """Return the node that says what is in a service's record."""
    parts = key.split("/")
    if len(parts) != 7:
        raise Unreadable(f"{key} is not a pyoverlay key")
    return NodeId(parts[5])


def _dump(fields: dict[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _load(key: str, value: str) -> dict[str, object]:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{key}: {error}") from None
    if not isinstance(fields, dict):
        raise Unreadable(f"{key}: not a JSON object")
    return fields


def _positive(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    return value if type(value) is int and 0 < value < _TOO_HIGH else 0


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")
    return value
