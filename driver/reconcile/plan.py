"""From wish and kernel to an ordered list of operations. Pure."""

from __future__ import annotations

from driver.kernel.objects import KernelObject, KernelState, Key
from driver.kernel.ops import Delete, Op, Set


def diff(want: KernelState, have: KernelState, *, prune_rows: bool = True) -> list[Op]:
    """Return what turns *have* into *want*: children go first, parents come first.

    With *prune_rows* false no FDB row and no neighbour is removed: the control plane has
    not yet said that it is in sync, so what looks superfluous may only be unknown.
    """
    renamed = _renamed(want, have)
    there = {**have, **renamed}
    want = _without_dead_ends(want, there)
    gone = have.keys() - want.keys() - {obj.key for obj in renamed.values()}
    deletes = [
        Delete(have[key])
        for key in sorted(gone, reverse=True)
        if _must_delete(have[key], have, want, prune_rows)
    ]
    # Sorting the few that differ takes less than sorting all.
    wrong = [key for key, obj in want.items() if _must_set(obj, there.get(key))]
    sets = [Set(want[key], there.get(key)) for key in sorted(wrong)]
    return [*deletes, *sets]


def _renamed(want: KernelState, have: KernelState) -> dict[Key, KernelObject]:
    """Return by wanted key the objects that have another name: their mark tells whose they are."""
    strays = {_known_by(obj): obj for key, obj in have.items() if obj.mark and key not in want}
    if not strays:
        return {}
    wanted = ((key, obj) for key, obj in want.items() if obj.mark and key not in have)
    return {key: strays[known] for key, obj in wanted if (known := _known_by(obj)) in strays}


def _known_by(obj: KernelObject) -> tuple[int, str, str]:
    return obj.kind, obj.key.place, obj.mark


def _without_dead_ends(want: KernelState, there: KernelState) -> KernelState:
    """Return the wish without what leads to objects that are gone for good: their containers have ended."""
    lost = {key for key, obj in want.items() if not obj.can_be_made and key not in there}
    if not lost:
        return want
    return {key: obj for key, obj in want.items() if key in lost or lost.isdisjoint(obj.needs)}


def _must_delete(obj: KernelObject, have: KernelState, want: KernelState, prune_rows: bool) -> bool:
    above = obj.parent
    if obj.goes_with_parent and above in have and above not in want:
        return False
    return prune_rows or not obj.is_told


def _must_set(want: KernelObject, have: KernelObject | None) -> bool:
    if have is None:
        return want.can_be_made
    return have != want
