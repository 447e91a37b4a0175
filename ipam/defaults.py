"""Default pools: which prefix a network gets when the user names none. Pure.

The two spaces choose from ranges of their own, because the leader (global) cannot know what the
other hosts chose for themselves (local), and the same prefix twice on one host means clashes. The
ranges keep clear of what else hands out private prefixes by itself: Docker's own pools
(172.17-172.31, 192.168.0.0/20 upwards, Swarm from 10.0.0.0 upwards), Google's auto networks
(10.128.0.0/9), AWS (172.31), the usual Kubernetes ranges (10.42, 10.43, 10.96, 10.244), CGNAT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network

from ipam.errors import BadRequest, Exhausted
from ipam.pools import IpamState, Network, Space, network_at, overlap

DEFAULT_LENGTH = {4: 24, 6: 64}
"""Prefix length of a default pool by IP version."""

_RANGES_V4: dict[Space, tuple[IPv4Network, ...]] = {
    Space.LOCAL: (IPv4Network("10.64.0.0/12"), IPv4Network("192.168.128.0/18")),
    Space.GLOBAL: (IPv4Network("10.80.0.0/12"), IPv4Network("192.168.192.0/18")),
}
"""IPv4 ranges per space, best first. The second one serves hosts that route all of 10/8 elsewhere."""

_SHORTEST_ROUTE = {4: 8, 6: 8}
"""Routes with a shorter prefix say nothing about where addresses are in use.

These are the default route, and the halves and quarters of the address space that VPN clients lay over it.
"""


def default_ranges(space: Space, version: int, ula_id: int) -> tuple[Network, ...]:
    """Return where default pools of *space* come from, best range first.

    For IPv6 it is one half of the /48 made of *ula_id* (RFC 4193 3.1: fd00::/8 and 40 bits).
    """
    if version == 4:
        return _RANGES_V4[space]
    first = (0xFD << 120) | (ula_id << 80) | ((space is Space.GLOBAL) << 79)
    return (network_at(first, 49, 6),)


def _first_gap(within: Network, length: int, taken: Iterable[Network]) -> Network | None:
    """Return the lowest prefix of *length* bits in *within* that overlaps none of *taken*."""
    size = 1 << (within.max_prefixlen - length)
    start, end = int(within.network_address), int(within.broadcast_address)
    for used in sorted((n for n in taken if overlap(n, within)), key=lambda n: int(n.network_address)):
        if int(used.network_address) >= start + size:
            break
        # The next aligned start behind it: jumping keeps 10,000 pools as cheap as one.
        start = max(start, -(-(int(used.broadcast_address) + 1) // size) * size)
    return network_at(start, length, within.version) if start + size - 1 <= end else None


def choose_pool(
    state: IpamState, space: Space, version: int, length: int | None, routes: Collection[Network]
) -> Network:
    """Choose a prefix that nobody has: no pool of either space, none of the host's *routes*.

    Every call answers with another one as long as the earlier ones are held. The engine counts on
    it: in the local space it refuses what overlaps its own routes and asks again while it holds
    the first (moby ipams/remote RequestPool), for ever if the answer never changes.

    *length* is the prefix length wanted, None for the default (24, 64). Raises BadRequest for a
    length that can never be served and Exhausted if all is taken.
    """
    ranges = default_ranges(space, version, state.ula_id)
    length = DEFAULT_LENGTH[version] if length is None else length
    _check_length(length, version, min(r.prefixlen for r in ranges))
    taken = [prefix for _, prefix in state.pools]
    taken += [r for r in routes if r.prefixlen >= _SHORTEST_ROUTE[r.version]]
    for within in ranges:
        if within.prefixlen <= length and (found := _first_gap(within, length, taken)):
            return found
    raise Exhausted(
        "Pool",
        f"any IPv{version} /{length}",
        f"no free prefix is left in {' or '.join(map(str, ranges))} besides {len(state.pools)} pools "
        f"and {len(routes)} host routes",
        "name a free one with --subnet, or remove networks that are no longer needed",
    )


def _check_length(length: int, version: int, shortest: int) -> None:
    longest = 31 if version == 4 else 127
    if not shortest <= length <= longest:
        size = "large" if length < shortest else "small"
        raise BadRequest(
            "Pool",
            f"any IPv{version} /{length}",
            f"too {size} for a default pool",
            f"ask for a length from {shortest} to {longest}, or name the prefix with --subnet",
        )
