"""The allocator: pure functions (state, request) -> (state, answer). No clock, no lock, no file.

What must hold:

* An address is given out dynamically only if nobody has it: no lease, no live endpoint; and it is never
  the network's, the broadcast's, the subnet-router's or a gateway's.
* Dynamic addresses are serial, always: the search goes on after the last one given and wraps
  around, so that a freed address rests as long as possible and does not meet stale ARP entries.
* What was asked for by name and is held already is given again where the engine may be repeating
  itself, and refused where an endpoint would get a twin: a living one of this host, or one that the
  Swarm's leader has told of and not released.
* A local pool is a member of a set, not a counter: asking for it again changes nothing. The Swarm's
  agent asks again after an unclean exit and releases once; a counter would only ever grow.
* A global pool counts its networks. Its caller is exact between two elections: each network opens
  it once and closes it once. A replay counts anew, so that it does not add up (`Pool.counted`).
* Several networks may share an explicit prefix, so the last release of a pool is obeyed only when
  no endpoint's lease in it is alive: the network that lives there has yet to release it.
* Releasing something unknown succeeds (the engine forgets the object whatever we answer).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from itertools import islice
from typing import TypeAlias

from ipam.defaults import choose_pool
from ipam.errors import BadRequest, Conflict, Exhausted, NotFound
from ipam.pools import Address, IpamState, Network, Pool, PoolId, Space, overlap
from ipam.replay import note_repeat

Interface: TypeAlias = IPv4Interface | IPv6Interface

InUse: TypeAlias = Callable[[Network, Address], bool]
"""Whether an endpoint that lives on this host, on a network with that subnet, has that address; or
whether such a network keeps it from all endpoints.

Only a living one counts: the bare record of an endpoint survives the engine's unclean exit. The callback must
neither block nor call back.
"""

_MOST_SKIPPED = 1 << 16
"""Live addresses without a lease to step over in one search.

It only ends a search in a /64 when `InUse` says yes to everything.
"""


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """A pool by name (*prefix*), or any (None) of *length* bits (None: the default size)."""

    space: Space
    version: int = 4
    prefix: Network | None = None
    sub_pool: Network | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """An address by name, or any (None).

    *gateway*: for the network itself. *leader*: asked by the Swarm leader's allocator, which sends
    `com.docker.network.ipam.serial` with every request (swarmkit cnmallocator setIPAMSerialAlloc).
    """

    address: Address | None = None
    gateway: bool = False
    leader: bool = False


def request_pool(
    state: IpamState,
    request: PoolRequest,
    routes: Collection[Network] = (),
    defended: Collection[Network] | None = None,
) -> tuple[IpamState, PoolId]:
    """Open the pool asked for, or choose one that avoids *routes* and every other pool.

    *defended* are the prefixes that a new local pool must not overlap; None means all of them.
    Raises Conflict for such an overlap, Exhausted or BadRequest if no pool can be chosen.
    """
    prefix = request.prefix
    if prefix is None:
        prefix = choose_pool(state, request.space, request.version, request.length, routes)
    elif request.space is Space.LOCAL:
        _refuse_overlap(state, prefix, defended)
    pool_id = PoolId(request.space, prefix, request.sub_pool)
    pool = (state.pools.get(pool_id.key) or Pool(prefix)).opened(request.sub_pool)
    if request.space is Space.GLOBAL:
        pool = pool.counted()
    return state.with_pool(request.space, pool), pool_id


def _refuse_overlap(state: IpamState, prefix: Network, defended: Collection[Network] | None) -> None:
    """Refuse two networks of one host that overlap in part: nearly always a typing error.

    Not done in the global space: a leader must never refuse what it is told in a replay, and
    cannot know whether the other pool's network still exists.
    """
    if (Space.LOCAL, prefix) in state.pools:
        return
    for space, other in state.pools:
        if space is Space.LOCAL and overlap(prefix, other) and (defended is None or other in defended):
            raise Conflict(
                "Pool",
                prefix,
                f"overlaps with {other}, which another network on this host uses",
                f"choose a --subnet outside of {other}, name {other} itself to share it, or remove "
                "that network first",
            )


def restore_pool(
    state: IpamState, pool_id: PoolId, gateway: Address | None, taken: Collection[Address]
) -> IpamState:
    """Open a local pool whose record was lost, with the leases that are known; an open one stays as it is."""
    if pool_id.key in state.pools:
        return state
    pool = Pool(pool_id.prefix).opened(pool_id.sub_pool)
    for address in taken:
        if address in pool.prefix:
            pool = pool.leased(pool.offset(address))
    if gateway is not None:
        pool = pool.leased(pool.offset(gateway), gateway=True)
    return state.with_pool(pool_id.space, pool)


def without_swarm(state: IpamState, own: Collection[Network]) -> IpamState:
    """Forget the pools of a Swarm that this host has left; *own* are the prefixes of its own networks."""
    kept = {key: pool for key, pool in state.pools.items() if key[0] is Space.LOCAL and key[1] in own}
    return replace(state, pools=kept)


def release_pool(state: IpamState, pool_id: PoolId, in_use: InUse) -> IpamState:
    """Close the pool; its gateway and auxiliary addresses go with it. Never fails.

    While living endpoints have addresses in it, the pool stays: another network shares its prefix.
    """
    pool = state.pools.get(pool_id.key)
    if pool is None or pool_id.sub_pool not in pool.cursors:
        return state
    if pool_id.space is Space.GLOBAL and pool.networks > 1:
        again = max(pool.opened_again - 1, 0)
        return state.with_pool(pool_id.space, replace(pool, networks=pool.networks - 1, opened_again=again))
    if pool_id.space is Space.LOCAL and len(pool.cursors) > 1:
        return state.with_pool(pool_id.space, pool.closed(pool_id.sub_pool))
    return state if _inhabited(pool, in_use) else state.without_pool(pool_id.key)


def _inhabited(pool: Pool, in_use: InUse) -> bool:
    """Return whether an endpoint somewhere lives on the pool's addresses.

    Other hosts' endpoints cannot be seen, so on a Swarm leader the lease itself is the proof; it
    releases every task's address before it releases a pool.
    """
    if pool.swarm:
        return bool(pool.endpoints)
    return any(in_use(pool.prefix, pool.address(offset)) for offset in pool.endpoints)


def request_address(
    state: IpamState, pool_id: PoolId, request: AddressRequest, in_use: InUse, now: float
) -> tuple[IpamState, Interface]:
    """Give an address of the pool, with the *pool's* prefix length.

    *now* is monotonic time in seconds. Raises NotFound (unknown pool), BadRequest (not an
    endpoint's address), Conflict (a living endpoint or the gateway has it), Exhausted.
    """
    pool = _locate(state, pool_id, request.address)
    leader = request.leader and pool_id.space is Space.GLOBAL
    if request.address is None:
        given, offset = _give(pool, pool_id, request.gateway, in_use)
    else:
        offset = _checked(pool, request.address)
        _refuse_gateway(pool, offset, request.gateway)
        if leader:
            _refuse_wish(pool, offset)
            state = _noted(state, pool, offset, now)
        else:
            _refuse_twin(pool, offset, in_use)
        given = pool.leased(offset, gateway=request.gateway)
    given = replace(given, swarm=given.swarm or leader)
    return state.with_pool(pool_id.space, given), ip_interface((given.address(offset), pool.prefix.prefixlen))


def release_address(state: IpamState, pool_id: PoolId, address: Address) -> IpamState:
    """Take an address back. Never fails.

    A gateway stays taken until its pool goes: networks that share a prefix share the gateway, and
    the pool's release follows at once when the last one is removed.
    """
    pool = state.pools.get(pool_id.key)
    if address not in pool_id.prefix:
        pool = _sibling(state, pool_id, address)
    if pool is None or (offset := pool.offset(address)) in pool.gateways:
        return state
    return state.with_pool(pool_id.space, pool.freed(offset))


def _locate(state: IpamState, pool_id: PoolId, address: Address | None) -> Pool:
    """Return the pool that a request for *address* is about.

    That is the one named; but the leader tries an address on each of a network's pools in random
    order and gives up at the first error that is not its own `ErrIPOutOfRange`, which a remote
    IPAM cannot send (swarmkit cnmallocator allocateVIP). So in the global space an address outside
    of the pool named finds the pool it lies in.
    """
    pool = state.pools.get(pool_id.key) or _made_again(pool_id)
    if address is None or address in pool.prefix:
        return pool.opened(pool_id.sub_pool)
    sibling = _sibling(state, pool_id, address)
    return replace(sibling, asked_for=True) if sibling else pool


def _sibling(state: IpamState, pool_id: PoolId, address: Address) -> Pool | None:
    """Return the other global pool with *address* in it: one that holds it, else the smallest."""
    if pool_id.space is Space.LOCAL:
        return None
    found = [p for (space, prefix), p in state.pools.items() if space is Space.GLOBAL and address in prefix]
    return max(found, key=lambda p: (p.offset(address) in p.leases, p.prefix.prefixlen), default=None)


def _made_again(pool_id: PoolId) -> Pool:
    """Make a local pool from its id after the loss of the state; raise NotFound in the global space.

    Locally that is safe, and better than a network that can start no container any more: the
    engine's agent names every address itself, and `InUse` knows every endpoint of this host. The
    first address is kept back, since it is the gateway unless the user chose another. The Swarm
    leader's addresses live on other hosts, unseen: giving out any would give some out twice.
    """
    if pool_id.space is Space.GLOBAL:
        raise NotFound(
            "PoolID",
            pool_id,
            "is not known on this Swarm leader, which cannot tell which of its addresses are taken",
            "make the Swarm repeat what it knows by changing the leader (docker node demote, then "
            "promote), or create the network again",
        )
    pool = Pool(pool_id.prefix)
    return replace(pool, leases=pool.leases.add(pool.usable[0]))


def _give(pool: Pool, pool_id: PoolId, gateway: bool, in_use: InUse) -> tuple[Pool, int]:
    """Give any address: for a gateway the lowest, else the next one after the last given.

    A pool that has a gateway gives it again: networks that share a prefix share its gateway, and
    a creation interrupted by a crash gets the same one when it is repeated.
    """
    if gateway and pool.gateways:
        offset = next(iter(pool.gateways))
        return pool.leased(offset, gateway=True), offset
    sub_pool = pool_id.sub_pool
    first, last = pool.usable if gateway else pool.range_of(sub_pool)
    after = None if gateway else pool.cursors.get(sub_pool)
    for offset in islice(_free(pool, first, last, after), _MOST_SKIPPED):
        if not in_use(pool.prefix, pool.address(offset)):
            given = pool.leased(offset, gateway=gateway)
            cursors = given.cursors if gateway else {**given.cursors, sub_pool: offset}
            return replace(given, cursors=cursors), offset
    raise Exhausted(
        "PoolID",
        pool_id,
        f"no address is left: {pool.leases.count_between(first, last)} of {last - first + 1} usable ones in "
        f"{sub_pool or pool.prefix} are in use",
        "remove containers or services that are no longer needed, or create a network with a larger "
        + ("--ip-range" if sub_pool else "--subnet"),
    )


def _free(pool: Pool, first: int, last: int, after: int | None) -> Iterator[int]:
    """Return the offsets from *first* to *last* without a lease, beginning behind *after*, each once."""
    start = first if after is None else after + 1
    for low, high in ((start, last), (first, start - 1)):
        position: int | None = low - 1
        while position is not None and position < high:
            position = pool.leases.next_free(position + 1, high)
            if position is not None:
                yield position


def _checked(pool: Pool, address: Address) -> int:
    """Return the offset of *address*; raise BadRequest if no endpoint of the pool can ever have it."""
    first, last = pool.usable
    remedy = f"choose one from {pool.address(first)} to {pool.address(last)}"
    if address not in pool.prefix:
        raise BadRequest("Address", address, f"lies outside of the pool {pool.prefix}", remedy)
    offset = pool.offset(address)
    if offset < first:
        kind = "network" if pool.prefix.version == 4 else "subnet-router anycast"
        raise BadRequest("Address", address, f"is the {kind} address of {pool.prefix}", remedy)
    if offset > last:
        raise BadRequest("Address", address, f"is the broadcast address of {pool.prefix}", remedy)
    return offset


def _refuse_gateway(pool: Pool, offset: int, gateway: bool) -> None:
    """Raise Conflict if an endpoint asks for the address of a gateway."""
    if offset in pool.gateways and not gateway:
        raise Conflict(
            "Address",
            pool.address(offset),
            f"is the gateway of a network on {pool.prefix}",
            "choose another address",
        )


def _refuse_wish(pool: Pool, offset: int) -> None:
    """Raise Conflict if the leader asks for what it has given to somebody else, and is not replaying."""
    if offset in pool.endpoints and not pool.may_be_repeated(offset):
        raise Conflict(
            "Address",
            pool.address(offset),
            f"belongs to another container or service of the Swarm on a network with subnet {pool.prefix}",
            "choose another address, or remove that container or service first",
        )


def _noted(state: IpamState, pool: Pool, offset: int, now: float) -> IpamState:
    """Note that the leader asks again for a lease of a former epoch, if it does."""
    if offset not in pool.leases or offset in pool.confirmed:
        return state
    return note_repeat(state, gateway=offset in pool.gateways, now=now)


def _refuse_twin(pool: Pool, offset: int, in_use: InUse) -> None:
    """Raise Conflict if the address has an owner on this host who would notice, or is reserved.

    A lease alone is no owner: after an unclean exit nobody released it (moby keeps no Swarm
    endpoints over a restart).
    """
    if offset not in pool.gateways and in_use(pool.prefix, pool.address(offset)):
        raise Conflict(
            "Address",
            pool.address(offset),
            f"belongs to a running container, or is an --aux-address, on a network with subnet {pool.prefix}",
            "choose another address, or stop that container first",
        )
