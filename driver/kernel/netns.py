"""Network namespaces: make, pin, enter. The only module that calls setns, unshare and mount.

A thread that changed its namespace is never used again: each such step runs in a thread of its
own, so no other code can end up in the wrong namespace (but see `visit`). libc is called through
ctypes because os.setns and os.unshare exist from Python 3.12 on only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from driver.kernel.netlink.numbers import IFF_UP

_T = TypeVar("_T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000
_MNT_DETACH = 2
_SIOCSIFFLAGS = 0x8914
_OWN = "/proc/thread-self/ns/net"

#: What every namespace of ours needs, in this order: "default" before a device exists.
SYSCTLS = (
    # The gateways of a network's subnets route between them.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    # Hosts share gateway addresses on purpose, and none must be announced or learnt.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    # Only the link-local addresses that we assign: each one costs reports to every other host.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    # A host's strict setting is inherited, and would drop a reply that another host routed.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    # Frames between two ports are nobody's business but the bridge's (only with br_netfilter loaded).
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
    # Removing the first address of a subnet must not take the others with it.
    ("net/ipv4/conf/all/promote_secondaries", "1"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def current() -> int:
    """Open the calling thread's namespace; the caller closes the descriptor."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def inside(namespace: int, work: Callable[[], _T]) -> _T:
    """Do *work* in *namespace* (a descriptor); raise what it raises, or OSError if one cannot enter."""

    def enter() -> _T:
        _check(_libc.setns(namespace, _CLONE_NEWNET), "setns")
        return work()

    return _apart(enter)


def visit(namespace: int, work: Callable[[], _T]) -> _T:
    """Do *work* in *namespace*, like `inside`, but in the calling thread, and return from there.

    For threads that this cannot hurt: one thread for each of fifty containers takes four times as long.
    """
    home = current()
    try:
        _check(_libc.setns(namespace, _CLONE_NEWNET), "setns")
        try:
            return work()
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def create() -> int:
    """Make a namespace with SYSCTLS and loopback up; return a descriptor that keeps it alive."""

    def make() -> int:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        _prepare()
        return current()

    return _apart(make)


def prepare(namespace: int) -> None:
    """Apply SYSCTLS in *namespace* and set its loopback up; raise OSError."""
    inside(namespace, _prepare)


def pin(namespace: int, path: Path) -> None:
    """Let *namespace* outlive this process, under *path*, where ip(8) finds it; raise OSError.

    A plain file left there by a process that died between the two steps is used.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    _mount(f"/proc/self/fd/{namespace}", path, "none", _MS_BIND)


def unpin(path: Path) -> None:
    """Let go of the namespace under *path*; nothing there is no error."""
    while is_pin(path):  # a pin can cover another
        _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"umount {path}")
    path.unlink(missing_ok=True)


def is_pin(path: Path) -> bool:
    """Tell whether *path* holds a namespace, not just the file for one."""
    return identity(path) is not None


def is_passed_on(folder: Path) -> bool:
    """Tell whether another mount namespace sees what is mounted below *folder*; raise OSError.

    It is tried. A mount gets a twin in each peer of the mount below it (mount_namespaces(7)). When it is made
    a slave, it follows its twins, if it has any (linux/fs/pnode.c: do_make_slave).
    """
    path = folder / f"pyoverlay.{os.getpid()}"
    namespace = current()
    try:
        pin(namespace, path)
        _mount("none", path, None, _MS_SLAVE)
        return _follows(path)
    finally:
        os.close(namespace)
        unpin(path)


def _follows(path: Path) -> bool:
    """Tell whether the mount on *path* is a slave (proc_pid_mountinfo(5))."""
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return any(fields[4] == str(path) and fields[6].startswith("master:") for fields in lines)


def identity(path: Path) -> tuple[int, int] | None:
    """Return the identity of the namespace under *path*; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    # Namespaces live on one file system (nsfs), a file that waits for its mount does not.
    return (found.st_dev, found.st_ino) if found.st_dev == _nsfs() else None


@cache
def _nsfs() -> int:
    return os.stat(_OWN).st_dev


def _prepare() -> None:
    # /proc/sys is read-only in a managed plugin. A procfs of our own, in a mount namespace that
    # ends with this thread, is writable, and shows the network namespace of whoever looks.
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
    _mount("proc", Path("/proc"), "proc", 0)
    for name, value in SYSCTLS:
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6, or without this knob
            Path("/proc/sys", name).write_text(value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _apart(work: Callable[[], _T]) -> _T:
    """Use the thread for nothing else: a thread that changed namespaces cannot be trusted to come back."""
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, name="netns")
    try:
        thread.start()
    except RuntimeError as error:  # of the host's limits, or the plugin's: as when files run out
        raise OSError(errno.EAGAIN, f"no thread for the namespace: {error}") from None
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    encoded = kind.encode() if kind else None
    result = _libc.mount(source.encode(), os.fsencode(target), encoded, ctypes.c_ulong(flags), None)
    _check(result, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
