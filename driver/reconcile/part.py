"""The part of a network that a change concerns: all that needs checking. Pure.

A change among ten thousand remote endpoints then costs no more than one among a few, and a container's
start does not make the kernel list all rows. Devices, addresses and shortcuts are few: they always belong to
the part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from driver.kernel.kinds import Row
from driver.kernel.objects import KernelState, Key
from driver.kernel.ops import Op, subject
from driver.reconcile.desired import desired
from driver.wish.model import Endpoint, Peer, Underlay
from driver.wish.state import State
from driver.wish.values import Address, Mac, NetworkId, Scope

_Peers = Mapping[Address, Peer]

_WORTH = 4
"""Reading single rows takes the kernel and us this many times as long, per row, as reading them all."""


@dataclass(frozen=True, slots=True)
class Part:
    """All devices, addresses and shortcuts of a network, and the rows at the places of *rows*, or all."""

    want: KernelState
    rows: Collection[Row] | None = None
    was: KernelState | None = None
    """What was wanted there before; None when that is not known."""

    def after(self, ops: Sequence[Op]) -> Part | None:
        """Return what to check after *ops*; None for everything, if this part does not cover it.

        A recreated device has lost its rows. Removing a replication row that somebody has changed
        removes them all.
        """
        if self.rows is not None:
            return None if any(subject(op).is_shared for op in ops) else self
        rows = {obj.key: obj for obj in map(subject, ops) if isinstance(obj, Row) and not obj.is_replication}
        if len(rows) < len(ops) or _WORTH * len(rows) > len(self.want):
            return self
        return Part(_without_others(self.want, rows), rows.values())


def whole(
    before: State | None, after: State, scope: Scope, underlay: Underlay, *, shortcuts: bool = True
) -> Part:
    """Return all of the network, or of the host; *before* is what was wanted earlier, if known."""
    want = desired(after, scope, underlay, shortcuts=shortcuts)
    if before is None:
        return Part(want)
    return Part(want, was=want if before is after else desired(before, scope, underlay, shortcuts=shortcuts))


def changed_part(
    before: State, after: State, network: NetworkId, underlay: Underlay, *, shortcuts: bool = True
) -> Part:
    """Return what is wanted differently than *before*, or all of the network when that is most of it.

    Both states must agree in network, host and underlay.
    """
    was, want = (
        desired(state, network, underlay, shortcuts=shortcuts) for state in narrowed(before, after, network)
    )
    rows = changed_rows(was, want)
    is_first_or_last = bool(was) != bool(want)  # container on this host
    if is_first_or_last or _WORTH * len(rows) > 2 * len(after.peers.entries.get(network, ())):
        return whole(before, after, network, underlay, shortcuts=shortcuts)
    return Part(_without_others(want, rows), rows.values(), _without_others(was, rows))


def narrowed(before: State, after: State, network: NetworkId) -> tuple[State, State]:
    """Return both states with only those peers that decide about the rows which may differ.

    What `desired` returns for the two differs in the same rows as what it returns for the whole states. These
    must agree in network, host and underlay.
    """
    old, new = before.peers.entries.get(network, {}), after.peers.entries.get(network, {})
    macs = _changed_peers(old, new) | _changed_endpoints(before, after, network, new)
    vteps = {peer.vtep for peers in (old, new) for peer in peers.values() if peer.mac in macs}
    few, some = _behind(vteps, old), _behind(vteps, new)
    return _with_peers(before, network, few), _with_peers(after, network, some)


def changed_rows(was: KernelState, want: KernelState) -> dict[Key, Row]:
    """Return the rows that differ between the two, with the wanted value."""
    both = {**was, **want}
    return {key: row for key, row in both.items() if isinstance(row, Row) and was.get(key) != want.get(key)}


def _changed_peers(old: _Peers, new: _Peers) -> set[Mac]:
    """Return the MACs of all peers that came, went or changed: their objects are no longer the same."""
    if old is new:
        return set()
    came = {address: peer for address, peer in new.items() if old.get(address) is not peer}
    went = old.keys() & came.keys()
    if len(old) - len(went) != len(new) - len(came):
        went |= old.keys() - new.keys()
    return {peer.mac for peer in came.values()} | {old[address].mac for address in went}


def _changed_endpoints(before: State, after: State, network: NetworkId, peers: _Peers) -> set[Mac]:
    """Return the MACs that local endpoints have begun or ceased to hide.

    An endpoint hides the peer of its address, and all those of its MAC.
    """
    if before.endpoints is after.endpoints and before.doubtful == after.doubtful:
        return set()
    changed = _receivers(before, network) ^ _receivers(after, network)
    hidden = [peers[address] for one in changed for address in one.addresses if address in peers]
    return {one.mac for one in changed} | {peer.mac for peer in hidden}


def _receivers(state: State, network: NetworkId) -> set[Endpoint]:
    return {endpoint for endpoint in state.receivers() if endpoint.network == network}


def _behind(vteps: set[Address], peers: _Peers) -> dict[Address, Peer]:
    """Return the peers on some hosts: together they decide about the replication to each."""
    # Hashing an address takes longer than all the rest, and few objects stand for all VTEPs.
    known = {id(peer.vtep): peer.vtep for peer in peers.values()}
    wanted = {number for number, vtep in known.items() if vtep in vteps}
    return {address: peer for address, peer in peers.items() if id(peer.vtep) in wanted} if wanted else {}


def _with_peers(state: State, network: NetworkId, peers: _Peers) -> State:
    return replace(state, peers=replace(state.peers, entries={**state.peers.entries, network: peers}))


def _without_others(want: KernelState, rows: Collection[Key]) -> KernelState:
    return {key: obj for key, obj in want.items() if key in rows or not isinstance(obj, Row)}
