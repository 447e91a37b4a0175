"""The kernel of this host: what may be asked of it, and how that is done.

Belongs here: the kinds of kernel objects, the Protocols that the reconcilers see, and the real kernel behind
them: namespaces, netlink, BPF, nftables.

Stays out: what should be there. Nothing here knows the wish, only single objects that somebody wants.

A reviewer checks: what does not bear our mark is never touched; one object's failure never stops the others;
an object that is read back compares equal to the one that was set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from driver.kernel.objects import KernelState, Key
from driver.kernel.ops import Announcement, Op
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import Address

if TYPE_CHECKING:
    from driver.kernel.kinds import Row


class Kernel(Protocol):
    """What a reconciler needs of a kernel. One thread calls it; NetlinkKernel is the real one."""

    def has_shortcuts(self) -> bool:
        """Whether this kernel has shortcuts past the bridge; if not, the log says why."""

    def namespaces(self) -> Collection[str]:
        """Names of all pinned namespaces that are ours."""

    def read_place(self, place: str, rows: Collection[Row] | None = None) -> KernelState:
        """Everything of ours in *place*, a namespace by its name or HOST; empty when it does not exist.

        With *rows*, only those rows that have one of their keys. Raises KernelError when the kernel cannot
        be read, or cannot read single rows (Linux before 5.0).
        """

    def container_ends(self) -> Collection[str]:
        """Names of the container ends of ours that are in the host's namespace: no container has them.

        Raises KernelError when the kernel cannot be read.
        """

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        """Carry out *ops* in order; one failure never stops the others.

        Returns the failures by key. A Set is idempotent and replaces; a Delete of what is
        gone succeeds. A Set may re-create a device (VNI or port changed); its rows are then
        gone, and the caller reads and diffs again.
        """

    def announce(self, what: Announcement) -> None:
        """Tell containers, and nobody on other hosts, who has an address now.

        Those that wait for its owner, or remember another one, know it when this returns. Nothing else
        changes. Where that cannot be, they find out for themselves, later.
        """

    def underlay(self, vtep: Address | None) -> Underlay | None:
        """The way to other hosts, to which this one is known as *vtep*; None when there is none.

        The device that has the address. For None, or when no device has it: the route's. Raises KernelError.
        """

    def await_news(self, timeout: float, wake: int) -> Collection[str]:
        """Wait until the kernel has news, *wake* (a descriptor) is readable or *timeout* seconds have passed.

        Returns the namespaces that a read may now show to be different from what the last one
        showed, and HOST when the underlay may be. Each change is reported once. What apply did is
        no news once it has been read; nor is what is not ours, nor what containers' traffic does.
        """

    def close(self) -> None:
        """Give back sockets and descriptors; the kernel objects stay."""


class Sandboxes(Protocol):
    """What balancers need of a kernel: our tables in containers' own namespaces. One thread calls it."""

    def read_sandbox(self, sandbox: str) -> KernelState:
        """Every balancer of ours in *sandbox*; empty when that does not exist (yet, or any more).

        Raises KernelError when it cannot be read.
        """

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        """Carry out *ops* on balancers, each whole or not at all; one failure never stops the others.

        They must follow from what the last `read` of their sandboxes showed: ERESTART when somebody changed
        it since. ENOENT for a Set in a sandbox that does not exist; a Delete there succeeds.
        """

    def cut(self, sandbox: str, dead: Collection[Address]) -> None:
        """End connections by way of virtual addresses to *dead* backends, which nobody has any more.

        Who has opened one in *sandbox* gets an error soon after, also if it only reads; whose packets are
        forwarded there gets a reset with the next one that it sends.
        """

    def await_news(self, timeout: float, wake: int) -> bool:
        """Wait until *wake* (a descriptor) is readable or *timeout* seconds have passed.

        Also ends when a namespace may have come or gone: then it returns True.
        """

    def close(self) -> None:
        """Give back sockets and descriptors; the tables stay."""
