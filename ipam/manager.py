"""AddressManager: the six calls of the engine's IpamDriver, typed, for the edge to call.

Each call is one transaction: parse, compute the next state, save it to disk, then publish it
and answer. If anything fails, nothing has happened.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from ipam import allocator, replay
from ipam.allocator import Interface, InUse
from ipam.errors import NotFound
from ipam.parse import check_options, parse_address, parse_address_request, parse_pool_id, parse_pool_request
from ipam.pools import Address, IpamState, Network, PoolId, Space
from lib.committed import Committed, Disk

Routes: TypeAlias = Callable[[], Collection[Network]]
"""The prefixes of the routes in this host's main table; asked when a default pool is chosen."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the engine should do for us.

    No MAC addresses: leases do not depend on them, and an engine that makes one up forbids the
    network driver to (moby drivers/remote CreateEndpoint). No replay at the engine's start: our
    leases are on the disk before they are answered, and a replay names the addresses of endpoints
    that still live, which look like twins. (The Swarm leader replays whatever is said here.)
    """

    requires_mac_address: bool = False
    requires_request_replay: bool = False


@dataclass(frozen=True, slots=True)
class AddressSpaces:
    """The names for networks of one host and for networks of the Swarm."""

    local_default: str = Space.LOCAL.value
    global_default: str = Space.GLOBAL.value


@dataclass(frozen=True, slots=True)
class PoolLease:
    """An open pool: *pool_id* for later calls, its *prefix*, and *data* for the engine (none)."""

    pool_id: str
    prefix: Network
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AddressLease:
    """An address with its pool's prefix length, as the container's interface will have it."""

    interface: Interface
    data: Mapping[str, str] = field(default_factory=dict)


class AddressManager:
    """Safe for all threads.

    *routes* says which prefixes default pools must avoid; *in_use* whether a living endpoint of
    this host has an address (see `allocator.InUse`); *clock* is monotonic seconds. *networks* says
    which prefixes the stand-alone networks of this host have: only these are defended against
    overlapping pools, so that what an unclean exit left behind, or a Swarm chose, stands in nobody's
    way. Without it every local pool is defended. *await_recovery* waits, for a while, until pools whose
    records were lost are back.

    Construction loads the state: DiskError if the file is damaged or newer.
    """

    def __init__(
        self,
        disk: Disk[IpamState],
        routes: Routes,
        in_use: InUse,
        clock: Callable[[], float] = time.monotonic,
        networks: Routes | None = None,
        *,
        await_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self._routes = routes
        self._in_use = in_use
        self._clock = clock
        self._networks = networks
        self._await_recovery = await_recovery
        state = disk.load() or IpamState(ula_id=secrets.randbits(40))
        self._committed = Committed(state, disk, durable=lambda state: state)  # the rest is not compared

    @property
    def state(self) -> IpamState:
        """The state as of now: a value that never changes."""
        return self._committed.snapshot()[0]

    def _change(self, step: Callable[[IpamState, float], tuple[IpamState, T]], *, lasting: bool = True) -> T:
        """Take a step; a release need not be *lasting*: the engine sends it once, full disk or not."""
        now = self._clock()
        answer, _ = self._committed.change(
            lambda state: step(replay.expire(state, now), now), lasting=lasting
        )
        return answer

    def capabilities(self) -> Capabilities:
        """Answer IpamDriver.GetCapabilities; it is also the sign that a replay may follow (see `replay`)."""
        self._change(lambda state, now: (replay.begin_epoch(state, now), None))
        return Capabilities()

    def default_address_spaces(self) -> AddressSpaces:
        """Answer IpamDriver.GetDefaultAddressSpaces."""
        return AddressSpaces()

    def request_pool(
        self,
        space: str,
        pool: str = "",
        sub_pool: str = "",
        options: Mapping[str, str] | None = None,
        v6: bool = False,
    ) -> PoolLease:
        """Open a pool (IpamDriver.RequestPool). A named one that is open already is answered again.

        Raises BadRequest, Conflict (overlap), Exhausted (no default pool left), DiskError.
        """
        check_options(options)
        request = parse_pool_request(space, pool, sub_pool, v6)
        routes = self._routes() if request.prefix is None else ()
        defended = None if self._networks is None else self._networks()
        pool_id = self._change(lambda state, _: allocator.request_pool(state, request, routes, defended))
        return PoolLease(str(pool_id), pool_id.prefix)

    def restore_pool(
        self,
        prefix: Network,
        sub_pool: Network | None,
        gateway: Address | None,
        taken: Collection[Address],
    ) -> None:
        """Open a pool of this host whose record was lost, with the leases that are known; raises DiskError.

        A pool that is there is not changed: its leases are known better than those of the caller.
        """
        pool_id = PoolId(Space.LOCAL, prefix, sub_pool)
        self._change(lambda state, _: (allocator.restore_pool(state, pool_id, gateway, taken), None))

    def release_pool(self, pool_id: str) -> None:
        """Close a pool (IpamDriver.ReleasePool); an unknown one, or a full disk, is no error."""
        try:
            parsed = parse_pool_id(pool_id)
        except NotFound:
            return
        self._change(
            lambda state, _: (allocator.release_pool(state, parsed, self._in_use), None), lasting=False
        )

    def request_address(
        self, pool_id: str, address: str | None = None, options: Mapping[str, str] | None = None
    ) -> AddressLease:
        """Give an address (IpamDriver.RequestAddress); None or "" asks for any.

        Raises NotFound (pool), BadRequest, Conflict (twin), Exhausted, DiskError.
        """
        parsed = parse_pool_id(pool_id)
        request = parse_address_request(address, options)
        if parsed.space is Space.LOCAL and parsed.key not in self.state.pools:
            self._await_recovery()
        interface = self._change(
            lambda state, now: allocator.request_address(state, parsed, request, self._in_use, now)
        )
        return AddressLease(interface)

    def release_address(self, pool_id: str, address: str) -> None:
        """Take an address back (IpamDriver.ReleaseAddress); an unknown one, or a full disk, is no error.

        Raises BadRequest for an address that does not parse.
        """
        try:
            parsed = parse_pool_id(pool_id)
        except NotFound:
            return
        if not address:
            return  # an auxiliary address that was never given (Go's nil IP)
        value = parse_address(address)
        self._change(lambda state, _: (allocator.release_address(state, parsed, value), None), lasting=False)
