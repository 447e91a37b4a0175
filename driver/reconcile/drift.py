"""What was changed behind our back, in a few words for a log line, and by kind. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields

from driver.kernel.objects import (
    FLOOD_MAC,
    WRONG_MTU,
    Balancer,
    Bridge,
    BridgeAddress,
    FdbEntry,
    KernelObject,
    KernelState,
    Key,
    Kind,
    Namespace,
    Neighbour,
    Port,
    Shortcut,
    Vxlan,
    parent,
)
from driver.kernel.ops import Delete, Op, Set, subject

_TOLD = 5
"""Findings that a sentence names; the others are only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that was not as it had been made."""

    kind: Kind
    text: str


def findings(ops: Sequence[Op], asked: Collection[Key] = ()) -> list[Finding]:
    """Return the causes of *ops*, which would mend the kernel; what went with another object is none.

    What was *asked* for is none either.
    """
    gone = {op.want.key for op in ops if isinstance(op, Set) and not _is_in_place(op)}
    found = [op for op in ops if subject(op).key not in asked and not _follows(op, gone)]
    return [Finding(subject(op).key.kind, _text(op)) for op in found]


def asked_for(ops: Sequence[Op], was: KernelState, want: KernelState) -> set[Key]:
    """Return what *ops* are about because the wish has gone from *was* to *want*, or a Join waits for it."""
    keys = {subject(op).key for op in ops}
    changed = {key for key in keys if was.get(key) != want.get(key)}
    return changed | {op.want.key for op in ops if isinstance(op, Set) and _is_new_port(op)}


def sentence(found: Sequence[Finding]) -> str:
    """Name the first few findings and count the rest."""
    told = "; ".join(finding.text for finding in found[:_TOLD])
    return told if len(found) <= _TOLD else f"{told}; and {len(found) - _TOLD} more"


def _is_new_port(op: Set) -> bool:
    return isinstance(op.want, Port) and op.want.create and op.have is None


def _is_in_place(op: Set) -> bool:
    """Tell whether there is something under the name that *op* wants."""
    return op.have is not None and op.have.key == op.want.key


def _follows(op: Op, gone: set[Key]) -> bool:
    if isinstance(op, Delete):
        return isinstance(op.have, Shortcut) and not op.have.port  # its container has ended
    if op.have is None:
        return parent(op.want) in gone
    if isinstance(op.want, Shortcut):
        return Key(Kind.PORT, op.want.namespace, op.want.port) in gone
    unplugged = isinstance(op.have, Vxlan | Port) and not op.have.bridge
    return unplugged and isinstance(op.want, Vxlan | Port) and _bridge_of(op.want) in gone


def _bridge_of(port: Vxlan | Port) -> Key:
    return Key(Kind.BRIDGE, port.namespace, port.bridge)


def _text(op: Op) -> str:
    match op:
        case Delete(have):
            return f"{_name(have)} was not ours"
        case Set(Namespace(name), Namespace()):
            return f"the pin of namespace {name} was gone"
        case Set(want, None):
            return f"{_name(want)} was gone"
        case Set(Balancer(), Balancer()):
            return f"{_name(op.want)} was changed"
        case Set(want, have) if have is not None:
            return f"{_name(want)}: {', '.join(_differences(want, have))}"
    raise TypeError(f"not an operation: {op}")


def _differences(want: KernelObject, have: KernelObject) -> Iterator[str]:
    names = want._fields if isinstance(want, tuple) else [one.name for one in fields(want) if one.compare]
    for name in names:
        was = getattr(have, name, None)
        if was != getattr(want, name):
            yield "was down or had a foreign setting" if was == WRONG_MTU else f"{name} was {was or 'none'}"


def _name(obj: KernelObject) -> str:
    match obj:
        case Namespace():
            return f"namespace {obj.name}"
        case Bridge() | Vxlan() | Port():
            return obj.name
        case BridgeAddress():
            return f"address {obj.interface} of {obj.device}"
        case FdbEntry() | Neighbour():
            return _row(obj)
        case Shortcut():
            return f"shortcut to {obj.mac} from {obj.device}"
        case Balancer():
            return f"table {obj.namespace} in {obj.sandbox}"


def _row(row: FdbEntry | Neighbour) -> str:
    if isinstance(row, Neighbour):
        return f"neighbour {row.address} on {row.device}"
    what = f"replication to {row.vtep}" if row.mac == FLOOD_MAC else f"FDB {row.mac}"
    return f"{what} on {row.device}"
