"""What the kernel is asked to do: set an object, or delete it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from driver.kernel.objects import KernelObject


@dataclass(frozen=True, slots=True)
class Set:
    """Make *want* exist with exactly its values; *have* is what is there now, if anything.

    *have* may bear another name: somebody renamed it, and it cannot be recreated.
    """

    want: KernelObject
    have: KernelObject | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove *have*; one that is gone already is no error."""

    have: KernelObject


Op = Set | Delete


def subject(op: Op) -> KernelObject:
    """Return the object that *op* is about."""
    return op.want if isinstance(op, Set) else op.have
