"""Leader change: which leases of the Swarm's space are still true. Pure.

A new Swarm leader's allocator asks its own node's plugin again for every pool, gateway, VIP and
task address it knows (swarmkit manager/allocator doNetworkInit); the old leader's plugin hears
nothing. So a plugin that was leader once holds stale leases when it becomes leader again. There is
no "reset" call; this is what there is:

* IpamDriver.GetCapabilities comes at each election, just before the replay, but also whenever the
  plugin is enabled, and then nothing follows. It starts an *epoch*: all the leader's leases become
  unconfirmed. They stay leases, so they are not handed out.
* Any request for a pool or an address confirms it.
* Unconfirmed ones expire `GRACE` seconds after a replay was recognised, and only then. A replay is
  recognised when the leader asks again, in this epoch, for a gateway *and* for another address
  that were both held unconfirmed: a second network on the same subnet would look like the first, a
  repeated `--ip` like the second, and to expire living leases is the worse mistake. Leases that are
  kept too long cost nothing but room.
* GetCapabilities within `GRACE` of a recognised replay starts no epoch: it might fall into the
  middle of the replay and take back what was confirmed.
* A request by name for a lease that we hold is a replay's only if its pool was opened since the last
  GetCapabilities and the address was not asked for since (`Pool.may_be_repeated`). Any other is the wish of
  somebody for an address that another one has.
"""

from __future__ import annotations

from dataclasses import replace

from ipam.addresses import AddressSet
from ipam.pools import IpamState, Pool, PoolKey, Replay, Space

GRACE = 600.0
"""Seconds from a recognised replay until what it did not mention is dropped.

A replay is over in seconds; the leader tries failed allocations again after five minutes (swarmkit
retryInterval).
"""


def begin_epoch(state: IpamState, now: float) -> IpamState:
    """Note that GetCapabilities came: nothing the leader held is confirmed any more."""
    state = expire(state, now)
    pools = {key: _untold(pool) if pool.swarm else pool for key, pool in state.pools.items()}
    if state.replay.seen_at is not None:
        return replace(state, pools=pools)
    pools = {key: _unconfirmed(pool) if pool.swarm else pool for key, pool in pools.items()}
    return replace(state, pools=pools, replay=Replay())


def _untold(pool: Pool) -> Pool:
    return replace(pool, told=AddressSet(), open=False)


def _unconfirmed(pool: Pool) -> Pool:
    return replace(pool, confirmed=AddressSet(), asked_for=False, opened_again=0)


def note_repeat(state: IpamState, *, gateway: bool, now: float) -> IpamState:
    """Note that the leader asked for an address that was held unconfirmed."""
    seen = state.replay
    if gateway and seen.gateway_at is None:
        return replace(state, replay=replace(seen, gateway_at=now))
    if not gateway and seen.lease_at is None:
        return replace(state, replay=replace(seen, lease_at=now))
    return state


def expire(state: IpamState, now: float) -> IpamState:
    """Drop what a recognised replay did not mention, once `GRACE` has passed; else *state* itself."""
    seen_at = state.replay.seen_at
    if seen_at is None or now - seen_at < GRACE:
        return state
    kept = {key: _expired(pool) for key, pool in state.pools.items() if _survives(key, pool)}
    return replace(state, pools=kept, replay=Replay())


def _survives(key: PoolKey, pool: Pool) -> bool:
    return key[0] is Space.LOCAL or not pool.swarm or pool.asked_for


def _expired(pool: Pool) -> Pool:
    """Drop the unconfirmed leases of a pool that was asked for, so that at least one network has it.

    Gateways stay: they go with their pool.
    """
    if not pool.swarm:
        return pool
    leases = (pool.leases & pool.confirmed) | pool.gateways
    return replace(pool, leases=leases, networks=max(pool.opened_again, 1))
