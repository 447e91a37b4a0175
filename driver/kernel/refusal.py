"""What the kernel's refusals mean, for a person: the object, the kernel's words, the way out."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from driver.kernel.objects import (
    Balancer,
    Bridge,
    BridgeAddress,
    FdbEntry,
    KernelObject,
    Key,
    Namespace,
    Neighbour,
    Port,
    Shortcut,
    Vxlan,
)
from driver.kernel.ops import Delete, Op, Set, subject
from driver.wish.errors import KernelError

GONE = (errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ESRCH)
"""How the kernel says that an object is not there."""

_NFT_MODULES = "nft_chain_nat nft_nat nft_numgen nft_reject_ipv4"
_MODULES = {Vxlan: "vxlan", Bridge: "bridge", Port: "veth", Balancer: _NFT_MODULES}
_CAPABILITIES = "this process needs the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN"
_MEMORY = "the kernel is short of memory; it will be tried again"
_HINTS = {
    errno.EPERM: _CAPABILITIES,
    errno.EACCES: _CAPABILITIES,
    errno.ENOBUFS: _MEMORY,
    errno.ENOMEM: _MEMORY,
    errno.EAFNOSUPPORT: "IPv6 is switched off on this host (ipv6.disable=1)",
    errno.EXFULL: "a Linux bridge has at most 1023 ports",
}


def describe(obj: KernelObject) -> str:
    """Name *obj* as a person would look for it."""
    place = "" if isinstance(obj, Namespace | Balancer) else f"in {obj.namespace}"
    match obj:
        case Namespace():
            text = f"network namespace {obj.name}"
        case Bridge():
            text = f"bridge {obj.name}"
        case BridgeAddress():
            text = f"address {obj.interface} on {obj.device}"
        case Vxlan():
            text = f"VXLAN device {obj.name} (VNI {obj.vni}, UDP port {obj.port})"
        case Port():
            text = f"veth {obj.name} (container end {obj.peer or 'elsewhere'})"
        case FdbEntry():
            text = f"FDB row {obj.mac} -> {obj.vtep} on {obj.device}"
        case Neighbour():
            text = f"neighbour {obj.address} = {obj.mac} on {obj.device}"
        case Shortcut():
            text = f"shortcut to {obj.mac} from {obj.device} to {obj.port}"
        case Balancer():
            text = f"table ip {obj.namespace} in {obj.sandbox}"
    return f"{text} {place}".rstrip()


def refusal(obj: KernelObject, cause: OSError, verb: str = "set") -> KernelError:
    """Build the error for *obj*; the kernel's own words are in *cause*."""
    number = cause.errno or 0
    said = f"cannot {verb} {describe(obj)}: {cause.strerror or cause} ({errno.errorcode.get(number, number)})"
    hint = _hint(obj, number)
    return KernelError(f"{said}; {hint}" if hint else said, number)


def failed(op: Op, cause: OSError) -> KernelError:
    """Build the error for an operation."""
    return refusal(subject(op), cause, "set" if isinstance(op, Set) else "delete")


def failures_of(ops: Sequence[Op], results: Sequence[OSError | None]) -> dict[Key, KernelError]:
    """Build the errors of a batch; that something to be deleted is gone is none."""
    return {
        subject(op).key: failed(op, refused)
        for op, refused in zip(ops, results, strict=True)
        if refused and not (isinstance(op, Delete) and refused.errno in GONE)
    }


def absent(obj: KernelObject, what: str, number: int = errno.ENODEV) -> KernelError:
    """Build the error for an object whose parent *what* is not there."""
    return KernelError(f"cannot set {describe(obj)}: {what} does not exist", number)


def foreign(obj: KernelObject, name: str, kind: str, place: str) -> KernelError:
    """Build the error for a *name* that somebody else's device bears; it is never touched."""
    return KernelError(
        f"cannot set {describe(obj)}: {place} has a {kind or 'hardware'} device named {name} that is not "
        f"pyoverlay's; rename or remove it (ip link set {name} name …)",
        errno.EEXIST,
    )


def vni_taken(obj: Vxlan, holder: str) -> KernelError:
    """Build the error for a VNI that another device of this host has; *holder* may be empty."""
    return KernelError(
        f"VNI {obj.vni} on UDP port {obj.port} is already used on this host by "
        f"{holder or 'a VXLAN device out of sight (of another namespace, or one just going away)'}; "
        "remove that device, or choose another VNI with -o vni=… or another port with -o vxlan_port=…",
        errno.EEXIST,
    )


def _hint(obj: KernelObject, number: int) -> str:
    hint = _HINTS.get(number, "")
    if number == errno.EOPNOTSUPP and type(obj) in _MODULES:
        module = _MODULES[type(obj)]
        hint = f"this kernel has no {module} support: modprobe -a {module} on the host"
    if number == errno.EADDRINUSE and isinstance(obj, Vxlan):
        hint = (
            f"UDP port {obj.port} is held by another program, or by a VXLAN device with other settings: "
            "see ss -lun, or choose another port with -o vxlan_port=…"
        )
    if number == errno.EAFNOSUPPORT and isinstance(obj, FdbEntry):
        hint = "a tunnel carries one address family: all hosts need VTEP addresses of the same one"
    return hint
