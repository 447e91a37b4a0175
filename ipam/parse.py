"""Parsing: the engine's strings to values, once, at the edge of this package.

Each function takes the wire's name of the field, for the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from ipam.allocator import AddressRequest, PoolRequest
from ipam.errors import BadRequest, NotFound
from ipam.pools import Address, Network, PoolId, Space, overlap

KNOWN_OPTIONS: frozenset[str] = frozenset()
"""`--ipam-opt` keys that mean something to us: none yet."""

REQUEST_TYPE = "RequestAddressType"
GATEWAY_TYPE = "com.docker.network.gateway"
"""What marks a request for a network's gateway (moby ipamapi/contract.go; the key has no prefix)."""
SERIAL = "com.docker.network.ipam.serial"
"""Sent with each request of the Swarm leader's allocator, and by nobody else."""
_ENGINE_PREFIX = "com.docker.network."

# Stricter than `ipaddress`, which also takes netmasks, zone names and bare addresses as prefixes.
_PREFIX = re.compile(r"[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}", re.ASCII)
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)

_NEVER: tuple[tuple[str, Network], ...] = (
    ("this host's own", ip_network("127.0.0.0/8")),
    ("this host's own", ip_network("::1/128")),
    ("multicast", ip_network("224.0.0.0/4")),
    ("multicast", ip_network("ff00::/8")),
    ("unspecified", ip_network("0.0.0.0/8")),
    ("unspecified", ip_network("::/128")),
)
"""Where no container can have an address, whatever the user asks for."""


def parse_space(text: str) -> Space:
    """Return an address space by name; raise BadRequest for any other name."""
    try:
        return Space(text)
    except ValueError:
        remedy = f'use "{Space.LOCAL}" or "{Space.GLOBAL}", as GetDefaultAddressSpaces says'
        raise BadRequest("AddressSpace", text, "is not an address space of this driver", remedy) from None


def parse_prefix(field: str, text: str) -> Network:
    """Return a CIDR prefix; raise BadRequest if it is none.

    Host bits are cleared, as engines up to 24 do with what the user typed (later ones refuse it
    themselves before anything reaches us); the answer shows the user what they got.
    """
    try:
        if not _PREFIX.fullmatch(text):
            raise ValueError("not address/length")
        return ip_network(text, strict=False)
    except ValueError:
        remedy = "write address/length, such as 10.20.0.0/24 or fd12:3456::/64"
        raise BadRequest(field, text, "is not a subnet in CIDR form", remedy) from None


def parse_address(text: str) -> Address:
    """Return a plain IP address; raise BadRequest if it is none."""
    try:
        if not _ADDRESS.fullmatch(text):
            raise ValueError("not an address")
        return ip_address(text)
    except ValueError:
        remedy = "write a plain address without a length, such as 10.20.0.5"
        raise BadRequest("Address", text, "is not an IP address", remedy) from None


def parse_pool_id(text: str) -> PoolId:
    """Return a pool id of ours; raise NotFound for anything else, since no such pool can exist."""
    try:
        return PoolId.parse(text)
    except ValueError:
        remedy = "use an id that this driver's RequestPool returned"
        raise NotFound("PoolID", text, "is not a pool of this driver", remedy) from None


def parse_pool_request(space: str, pool: str, sub_pool: str, v6: bool) -> PoolRequest:
    """Parse RequestPool's fields; raise BadRequest that names the one that is wrong."""
    where, version = parse_space(space), 6 if v6 else 4
    if not pool:
        if sub_pool:
            raise BadRequest(
                "SubPool", sub_pool, "has no pool to be part of", "give --subnet with --ip-range"
            )
        return PoolRequest(where, version)
    prefix = parse_prefix("Pool", pool)
    _check_family("Pool", prefix, version)
    # "0.0.0.0/26" is engine 29's way to say "any /26" (moby LN/network.go isDefaultPool).
    if int(prefix.network_address) == 0 and _is_any(pool):
        return _any_of(where, prefix, sub_pool)
    _check_place(prefix)
    return PoolRequest(where, version, prefix, _parse_sub_pool(sub_pool, prefix))


def _is_any(pool: str) -> bool:
    return int(ip_address(pool.partition("/")[0])) == 0


def _any_of(space: Space, size: Network, sub_pool: str) -> PoolRequest:
    if sub_pool:
        remedy = "give a concrete --subnet with --ip-range"
        raise BadRequest("SubPool", sub_pool, f"needs a concrete pool, not any /{size.prefixlen}", remedy)
    return PoolRequest(space, size.version, length=size.prefixlen)


def _check_family(field: str, prefix: Network, version: int) -> None:
    if prefix.version == version:
        return
    if version == 4:
        # A Swarm sends IPv6 subnets without V6 and would give its tasks one family at random.
        remedy = "use an IPv4 subnet; a Swarm has no IPv6 addresses, a stand-alone network takes --ipv6"
        raise BadRequest(field, prefix, "is an IPv6 subnet where IPv4 was asked for", remedy)
    raise BadRequest(field, prefix, "is an IPv4 subnet where IPv6 was asked for", "use an IPv6 subnet")


def _check_place(prefix: Network) -> None:
    for kind, never in _NEVER:
        if overlap(prefix, never):
            remedy = "use a private subnet, such as one in 10.0.0.0/8 or fd00::/8"
            raise BadRequest("Pool", prefix, f"contains {kind} addresses ({never})", remedy)


def _parse_sub_pool(text: str, pool: Network) -> Network | None:
    if not text:
        return None
    sub_pool = parse_prefix("SubPool", text)
    if not (overlap(sub_pool, pool) and sub_pool.prefixlen >= pool.prefixlen):
        remedy = f"choose an --ip-range inside {pool}, or leave it out"
        raise BadRequest("SubPool", sub_pool, f"lies outside of the pool {pool}", remedy)
    return sub_pool


def check_options(options: Mapping[str, str] | None) -> None:
    """Refuse an unknown `--ipam-opt` by name; the engine's own keys always pass."""
    for key in options or ():
        if key in KNOWN_OPTIONS or key == REQUEST_TYPE or key.startswith(_ENGINE_PREFIX):
            continue
        known = f"it knows {', '.join(sorted(KNOWN_OPTIONS))}" if KNOWN_OPTIONS else "it has none so far"
        raise BadRequest("--ipam-opt", key, "is not an option of this driver", f"leave it out; {known}")


def parse_address_request(address: str | None, options: Mapping[str, str] | None) -> AddressRequest:
    """Parse RequestAddress's fields. Unknown options pass: the user's were checked with the pool."""
    found = options or {}
    return AddressRequest(
        address=parse_address(address) if address else None,
        gateway=found.get(REQUEST_TYPE) == GATEWAY_TYPE,
        leader=SERIAL in found,
    )
