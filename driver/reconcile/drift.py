"""What somebody else has changed, in a few words for a log line, and by kind. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from driver.kernel.objects import KernelState, Key, Kind
from driver.kernel.ops import Delete, Op, Set, subject

_TOLD = 5
"""How many findings a sentence names; the others are only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that was not as it had been made."""

    kind: Kind
    text: str


def findings(ops: Sequence[Op], asked: Collection[Key] = ()) -> list[Finding]:
    """Return the causes of *ops*, which would repair the kernel: neither what was lost with another object,
    nor what was *asked* for.
    """
    gone = {op.want.key for op in ops if isinstance(op, Set) and not _is_in_place(op)}
    found = [op for op in ops if subject(op).key not in asked and not _follows(op, gone)]
    return [Finding(subject(op).kind, _text(op)) for op in found]


def asked_for(ops: Sequence[Op], was: KernelState, want: KernelState) -> set[Key]:
    """Return what *ops* are about because the wish has gone from *was* to *want*, or a Join waits for it."""
    keys = {subject(op).key for op in ops}
    changed = {key for key in keys if was.get(key) != want.get(key)}
    return changed | {
        op.want.key for op in ops if isinstance(op, Set) and op.want.is_awaited and op.have is None
    }


def sentence(found: Sequence[Finding]) -> str:
    """Name the first few findings and count the rest."""
    told = "; ".join(finding.text for finding in found[:_TOLD])
    return told if len(found) <= _TOLD else f"{told}; and {len(found) - _TOLD} more"


def _is_in_place(op: Set) -> bool:
    """Tell whether there is something under the name that *op* wants."""
    return op.have is not None and op.have.key == op.want.key


def _follows(op: Op, gone: set[Key]) -> bool:
    """Tell whether *op* restores what was lost with another object."""
    if isinstance(op, Delete):
        return op.have.leads_nowhere
    if op.have is None:
        return op.want.parent in gone
    return not gone.isdisjoint(op.want.needs)


def _text(op: Op) -> str:
    if isinstance(op, Delete):
        return f"{op.have.label} was not ours"
    return op.want.deviation(op.have)
