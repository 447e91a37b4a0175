"""From wish and kernel to an ordered list of operations. Pure."""

from __future__ import annotations

from driver.kernel.objects import (
    FdbEntry,
    KernelObject,
    KernelState,
    Key,
    Kind,
    Neighbour,
    Port,
    Shortcut,
    parent,
)
from driver.kernel.ops import Delete, Op, Set

#: Rows of a device vanish with it; ports and devices are taken down one by one, because
#: a namespace dies asynchronously and would keep its VNI busy until then.
_ROWS = frozenset({Kind.FDB, Kind.NEIGHBOUR, Kind.ADDRESS, Kind.SHORTCUT})


def diff(want: KernelState, have: KernelState, *, prune_rows: bool = True) -> list[Op]:
    """Return what turns *have* into *want*: children go first, parents come first.

    With *prune_rows* false no FDB row and no neighbour is removed: the control plane has
    not said yet that it is in sync, so what looks superfluous may only be unknown.
    """
    renamed = _renamed(want, have)
    there = {**have, **renamed}
    want = _without_dead_ends(want, there)
    gone = have.keys() - want.keys() - {port.key for port in renamed.values()}
    deletes = [
        Delete(have[key])
        for key in sorted(gone, reverse=True)
        if _must_delete(have[key], have, want, prune_rows)
    ]
    # To sort the few that differ takes less than to sort all.
    wrong = [key for key, obj in want.items() if _must_set(obj, there.get(key))]
    sets = [Set(want[key], there.get(key)) for key in sorted(wrong)]
    return [*deletes, *sets]


def _renamed(want: KernelState, have: KernelState) -> dict[Key, Port]:
    """Return by wanted key the ports that are there under another name: the alias tells whose they are."""
    strays = {
        (obj.namespace, obj.alias): obj
        for key, obj in have.items()
        if isinstance(obj, Port) and key not in want
    }
    wanted = ((key, obj) for key, obj in want.items() if isinstance(obj, Port) and key not in have)
    return {key: strays[whose] for key, obj in wanted if (whose := (obj.namespace, obj.alias)) in strays}


def _without_dead_ends(want: KernelState, there: KernelState) -> KernelState:
    """Return the wish without shortcuts to ports that are gone for good: their containers have ended."""
    lost = {
        (obj.namespace, obj.name)
        for key, obj in want.items()
        if isinstance(obj, Port) and not obj.create and key not in there
    }
    if not lost:
        return want
    return {
        key: obj
        for key, obj in want.items()
        if not (isinstance(obj, Shortcut) and (obj.namespace, obj.port) in lost)
    }


def _must_delete(obj: KernelObject, have: KernelState, want: KernelState, prune_rows: bool) -> bool:
    above = parent(obj)
    if obj.key.kind in _ROWS and above in have and above not in want:
        return False
    return prune_rows or not isinstance(obj, FdbEntry | Neighbour)


def _must_set(want: KernelObject, have: KernelObject | None) -> bool:
    if have is None:
        return not isinstance(want, Port) or want.create
    return have != want
