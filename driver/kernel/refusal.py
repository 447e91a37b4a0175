"""What the kernel's refusals mean to people: the object, the kernel's words, the remedy."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Delete, Op, Set, subject
from driver.wish.errors import KernelError

GONE = (errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ESRCH)
"""How the kernel says that an object is not there."""

_CAPABILITIES = "this process needs the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN"
_MEMORY = "the kernel is short of memory; this will be tried again"
_HINTS = {
    errno.EPERM: _CAPABILITIES,
    errno.EACCES: _CAPABILITIES,
    errno.ENOBUFS: _MEMORY,
    errno.ENOMEM: _MEMORY,
    errno.EAFNOSUPPORT: "IPv6 is switched off on this host (ipv6.disable=1)",
    errno.EXFULL: "a Linux bridge has at most 1023 ports",
}


def refusal(obj: KernelObject, cause: OSError, verb: str = "set") -> KernelError:
    """Build the error for *obj*; the kernel's own words are in *cause*."""
    number = cause.errno or 0
    said = (
        f"cannot {verb} {obj.description}: {cause.strerror or cause} ({errno.errorcode.get(number, number)})"
    )
    hint = _hint(obj, number)
    return KernelError(f"{said}; {hint}" if hint else said, number)


def failed(op: Op, cause: OSError) -> KernelError:
    """Build the error for an operation."""
    return refusal(subject(op), cause, "set" if isinstance(op, Set) else "delete")


def failures_of(ops: Sequence[Op], results: Sequence[OSError | None]) -> dict[Key, KernelError]:
    """Build the errors of a batch; deleting what is already gone is no error."""
    return {
        subject(op).key: failed(op, refused)
        for op, refused in zip(ops, results, strict=True)
        if refused and not (isinstance(op, Delete) and refused.errno in GONE)
    }


def absent(obj: KernelObject, what: str, number: int = errno.ENODEV) -> KernelError:
    """Build the error for an object whose parent *what* is not there."""
    return KernelError(f"cannot set {obj.description}: {what} does not exist", number)


def foreign(obj: KernelObject, name: str, kind: str, place: str) -> KernelError:
    """Build the error for a *name* that somebody else's device has; that device is never touched."""
    return KernelError(
        f"cannot set {obj.description}: {place} has a {kind or 'hardware'} device named {name} that is not "
        f"pyoverlay's; rename or remove it (ip link set {name} name …)",
        errno.EEXIST,
    )


def _hint(obj: KernelObject, number: int) -> str:
    if number == errno.EOPNOTSUPP and obj.module:
        return f"this kernel has no {obj.module} support: modprobe -a {obj.module} on the host"
    return obj.hint(number) or _HINTS.get(number, "")
