"""The values of address management: spaces, pool ids, pools, and the whole state as one value.

Rules of this module: everything is frozen, a change makes a new value. Fields that only mean
something while the process runs (`confirmed`, `asked_for`, `opened_again`, `told`, `open`, `replay`)
take no part in comparison and are not stored: two states are equal when they are the same on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

from ipam.addresses import AddressSet

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
PoolKey: TypeAlias = tuple["Space", Network]


class Space(StrEnum):
    """An address space: within one, an address belongs to one endpoint.

    LOCAL is asked by the engine of this host (stand-alone networks, and the Swarm's agent for
    addresses that the leader chose before); GLOBAL by the Swarm leader's allocator. The two must
    have different names, or the engine skips its overlap checks (moby ipams/remote RequestPool).
    """

    LOCAL = "pyoverlay-local"
    GLOBAL = "pyoverlay-global"


def overlap(one: Network, other: Network) -> bool:
    """Return whether the two prefixes share an address; never across families."""
    if one.version != other.version:
        return False
    first, last = int(one.network_address), int(one.broadcast_address)
    return first <= int(other.broadcast_address) and int(other.network_address) <= last


@dataclass(frozen=True, slots=True)
class PoolId:
    """Names a pool (and the sub-range dynamic addresses come from) in every later call.

    The engine sends no network id with IPAM calls, so the id says all there is to know, in the
    form that the engine's own IPAM uses: `<space>/<prefix>[/<sub-pool>]`.
    """

    space: Space
    prefix: Network
    sub_pool: Network | None = None

    def __str__(self) -> str:
        return "/".join(map(str, filter(None, (self.space.value, self.prefix, self.sub_pool))))

    @property
    def key(self) -> PoolKey:
        """What identifies the pool: leases are shared between its sub-pools."""
        return (self.space, self.prefix)

    @classmethod
    def parse(cls, text: str) -> PoolId:
        """Return what `str` wrote as *text*; raise ValueError if it never did."""
        parts = text.split("/")
        if len(parts) not in (3, 5):
            raise ValueError(f"{text!r} is not space/address/length[/address/length]")
        sub_pool = ip_network("/".join(parts[3:])) if len(parts) == 5 else None
        pool_id = cls(Space(parts[0]), ip_network("/".join(parts[1:3])), sub_pool)
        if str(pool_id) != text:
            raise ValueError(f"{text!r} is not written as {pool_id}")
        return pool_id


@dataclass(frozen=True, slots=True)
class Pool:
    """One prefix of one space: who holds which address, as offsets from the prefix's first one.

    *leases* holds everything that must not be handed out. *gateways* is the part of it that
    belongs to networks, not to endpoints: it stays until the pool goes. *cursors* has a row per
    sub-pool in use (None: the whole pool) with the last offset given there (None: nothing yet).
    *networks* counts how often the pool was opened and not closed; only the global space looks at it.
    *swarm* says that the Swarm leader's allocator asks here, so its replay can be waited for.
    *confirmed* are the leases asked for since the last election, *asked_for* says whether the pool was
    and *opened_again* how often it was opened since.

    *told* and *open* are of the last GetCapabilities, or of the process's start if that came later: which
    addresses were asked for since, and whether the pool was opened since. A leader's replay opens each pool
    before it asks for an address, and asks for each address once.
    """

    prefix: Network
    leases: AddressSet = field(default_factory=AddressSet)
    gateways: AddressSet = field(default_factory=AddressSet)
    cursors: Mapping[Network | None, int | None] = field(default_factory=dict)
    networks: int = 0
    swarm: bool = False
    confirmed: AddressSet = field(default_factory=AddressSet, compare=False)
    asked_for: bool = field(default=False, compare=False)
    opened_again: int = field(default=0, compare=False)
    told: AddressSet = field(default_factory=AddressSet, compare=False)
    open: bool = field(default=False, compare=False)

    @property
    def usable(self) -> tuple[int, int]:
        """First and last offset an endpoint may have.

        IPv4 keeps the network and the broadcast address (RFC 1122 3.2.1.3), except in a /31 (RFC
        3021) and a /32; IPv6 keeps the subnet-router anycast address (RFC 4291 2.6.1), except in
        a /127 (RFC 6164) and a /128.
        """
        last = self.prefix.num_addresses - 1
        if last <= 1:
            return 0, last
        return 1, last - (1 if self.prefix.version == 4 else 0)

    @property
    def endpoints(self) -> AddressSet:
        """The leases that are nobody's gateway."""
        return self.leases - self.gateways

    def range_of(self, sub_pool: Network | None) -> tuple[int, int]:
        """Return the first and last usable offset within *sub_pool* (None: within the whole pool)."""
        first, last = self.usable
        if sub_pool is None:
            return first, last
        low = self.offset(sub_pool.network_address)
        return max(first, low), min(last, low + sub_pool.num_addresses - 1)

    def offset(self, address: Address) -> int:
        """Return the distance of *address* from the pool's first address."""
        return int(address) - int(self.prefix.network_address)

    def address(self, offset: int) -> Address:
        """Return the address at *offset*."""
        return self.prefix.network_address + offset

    def opened(self, sub_pool: Network | None) -> Pool:
        """Return the pool with *sub_pool* in use; a range in use already keeps its place."""
        if sub_pool in self.cursors:
            return self if self.asked_for else replace(self, asked_for=True)
        return replace(self, cursors={**self.cursors, sub_pool: None}, asked_for=True)

    def closed(self, sub_pool: Network | None) -> Pool:
        """Return the pool with *sub_pool* no longer in use."""
        return replace(self, cursors={sub: last for sub, last in self.cursors.items() if sub != sub_pool})

    def counted(self) -> Pool:
        """Return the pool with one network more, or with one of a leader's replay found again."""
        again = self.opened_again + 1
        return replace(self, opened_again=again, networks=max(self.networks, again), open=True)

    def leased(self, offset: int, *, gateway: bool = False) -> Pool:
        """Return the pool with *offset* taken, confirmed and told."""
        return replace(
            self,
            leases=self.leases.add(offset),
            gateways=self.gateways.add(offset) if gateway else self.gateways,
            confirmed=self.confirmed.add(offset),
            told=self.told.add(offset),
        )

    def freed(self, offset: int) -> Pool:
        """Return the pool with *offset* free again."""
        return replace(
            self,
            leases=self.leases.discard(offset),
            confirmed=self.confirmed.discard(offset),
            told=self.told.discard(offset),
        )

    def may_be_repeated(self, offset: int) -> bool:
        """Return whether a leader that asks for this lease by name may be replaying what it knows."""
        return self.open and offset not in self.told


@dataclass(frozen=True, slots=True)
class Replay:
    """When (monotonic seconds) the Swarm leader asked again for a gateway and for a lease we hold.

    Both together mean that a new leader's allocator is going through all it knows.
    """

    gateway_at: float | None = None
    lease_at: float | None = None

    @property
    def seen_at(self) -> float | None:
        """When a replay was recognised; None if there was none."""
        if self.gateway_at is None or self.lease_at is None:
            return None
        return max(self.gateway_at, self.lease_at)


@dataclass(frozen=True, slots=True)
class IpamState:
    """Everything address management knows, of both spaces.

    *ula_id* is the 40-bit random global id that all IPv6 default pools of this host derive from
    (RFC 4193 3.2.1).
    """

    ula_id: int
    pools: Mapping[PoolKey, Pool] = field(default_factory=dict)
    replay: Replay = field(default_factory=Replay, compare=False)

    def with_pool(self, space: Space, pool: Pool) -> IpamState:
        """Return the state with *pool* new or changed."""
        if self.pools.get((space, pool.prefix)) is pool:
            return self
        return replace(self, pools={**self.pools, (space, pool.prefix): pool})

    def without_pool(self, key: PoolKey) -> IpamState:
        """Return the state without the pool *key*."""
        return replace(self, pools={k: pool for k, pool in self.pools.items() if k != key})


def network_at(first: int, prefixlen: int, version: int) -> Network:
    """Return the prefix of *prefixlen* bits whose first address is the number *first*."""
    address = IPv4Address(first) if version == 4 else IPv6Address(first)
    return ip_network((address, prefixlen))
