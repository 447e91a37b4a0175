"""The real kernel of this host: implements the Protocol by way of the kinds.

pyroute2 builds the messages that are few and intricate (`netlink.messages`); struct handles those that are
many (`netlink.rows`), read all the time (`netlink.links`) or unsolicited (`netlink.events`).
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from driver.kernel.degraded import degraded
from driver.kernel.kinds import KINDS, Namespace, Row
from driver.kernel.kinds.base import SpaceObject, Together
from driver.kernel.look import Look
from driver.kernel.netlink import links, routes
from driver.kernel.netlink.events import HostListener, Listener
from driver.kernel.netlink.rows import Place
from driver.kernel.objects import KernelState, Key, index
from driver.kernel.ops import Announcement, Delete, Op, Set, subject
from driver.kernel.refusal import failed, failures_of, refusal
from driver.kernel.shortcuts import filters
from driver.kernel.spaces import Space, Spaces
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import HOST, Address

log = logging.getLogger(__name__)


class NetlinkKernel:
    """The kernel of this host; "the host" is the network namespace of the thread that makes it.

    Namespaces are pinned in *netns_dir*, which is created with the first one. For one thread at a
    time, whichever that is.
    """

    def __init__(self, netns_dir: Path = Path("/run/netns")) -> None:
        self._spaces = Spaces(netns_dir)
        self._host_listener = HostListener.here()
        # Polled, not read: it reports that something was mounted or unmounted (proc_pid_mountinfo(5)).
        self._mounts = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Give back sockets and descriptors; the kernel objects stay."""
        self._spaces.close()
        self._mounts.close()
        self._host_listener.close()

    def has_shortcuts(self) -> bool:
        """Whether this kernel has shortcuts past the bridge: tried in a namespace without traffic."""
        try:
            filters.try_out()
        except OSError as failure:
            log.info("this kernel has no shortcuts past the bridge: %s", failure.strerror)
            return False
        return True

    def namespaces(self) -> Collection[str]:
        """Names of all pinned namespaces that are ours."""
        return self._spaces.names()

    def read_place(self, place: str, rows: Collection[Row] | None = None) -> KernelState:
        """Everything of ours in *place*; empty when it does not exist. See the Protocol.

        What others made in it is left out. An object is not sound if a setting that our fields do not name
        was changed. Raises KernelError.
        """
        try:
            return self._read_host() if place is HOST else self._read_space(place, rows)
        except OSError as failure:
            raise refusal(Namespace(place), failure, "read") from failure

    def container_ends(self) -> Collection[str]:
        """Names of the container ends of ours that are in the host's namespace: no container has them.

        Raises KernelError.
        """
        try:
            found = links.links(self._spaces.host).values()
        except OSError as failure:
            raise KernelError(
                f"cannot read the host's devices: {failure.strerror}", failure.errno or 0
            ) from failure
        return [link.name for link in found if link.ours and link.kind == "veth"]

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        """Carry out *ops* in order; one failure never stops the others. See the Protocol."""
        failures: dict[Key, KernelError] = {}
        for batch, some in groupby(ops, key=_together):
            ops_of_batch = list(some)
            if batch:
                failures |= self._apply_together(batch, ops_of_batch)
            else:
                failures |= self._apply_each(ops_of_batch)
        return failures

    def announce(self, what: Announcement) -> None:
        """Tell containers who has an address now. See the Protocol."""
        try:
            space = self._spaces.space(what.namespace)
            if space:
                space.announcer.announce(what)
        except OSError as failure:
            degraded("an address that gets another MAC may not be reached for up to 40 s", failure)

    def underlay(self, vtep: Address | None) -> Underlay | None:
        """The way to other hosts, to which this one is known as *vtep*. See the Protocol."""
        way = routes.way(self._spaces.host, vtep)
        self._host_listener.expect(way.device if way else None)
        return Underlay(way.device.name, way.device.mtu, way.has_vtep) if way else None

    def await_news(self, timeout: float, wake: int) -> Collection[str]:
        """Wait for news of what was read. See the Protocol."""
        deadline = time.monotonic() + timeout
        while True:
            ready = self._poll(wake, max(0.0, deadline - time.monotonic()))
            changed = {n for n, space in self._spaces.open.items() if _has_news(space.listener, ready)}
            if _has_news(self._host_listener, ready):
                changed.add(HOST)
            if self._mounts.fileno() in ready:
                changed |= self._spaces.moved()
            if changed or wake in ready or not ready:
                return changed

    def _poll(self, wake: int, timeout: float) -> set[int]:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        listeners = [self._host_listener, *(space.listener for space in self._spaces.open.values())]
        for listener in listeners:
            poll.register(listener, select.POLLIN)
        kept = {listener.fileno() for listener in listeners if listener.has_kept_news}
        return kept | {descriptor for descriptor, _ in poll.poll(0 if kept else timeout * 1000)}

    def _read_space(self, place: str, rows: Collection[Row] | None) -> KernelState:
        """Drop old news before reading: what changes during the read stays news, and is read again."""
        space = self._spaces.space(place)
        if space is None:
            return {}
        if rows is None:
            space.listener.forget()
        else:
            space.listener.forget_all_but_rows(_places(space, rows))
        found = links.links(space.channel)
        space.listener.expect(found)
        look = Look(space.channel, place, self._spaces.is_pinned(place), found, rows)
        return index(obj for kind in KINDS if not kind.is_of_host for obj in kind.read(look))

    def _read_host(self) -> KernelState:
        kinds = [kind for kind in KINDS if kind.is_of_host]
        if not kinds:
            return {}
        look = Look(self._spaces.host, HOST, True, links.links(self._spaces.host))
        return index(obj for kind in kinds for obj in kind.read(look))

    def _apply_each(self, ops: Sequence[Op]) -> dict[Key, KernelError]:
        failures: dict[Key, KernelError] = {}
        for op in ops:
            try:
                _carry_out(op, self._spaces)
            except KernelError as failure:
                failures[subject(op).key] = failure
            except OSError as failure:
                failures |= failures_of([op], [failure])
        return failures

    def _apply_together(self, batch: Together, ops: list[Op]) -> Mapping[Key, KernelError]:
        try:
            return batch.carry_out(self._spaces, batch.place, batch.device, ops)
        except OSError as failure:
            return {subject(op).key: failed(op, failure) for op in ops}


def _carry_out(op: Op, spaces: Spaces) -> None:
    wanted = _placed(op)
    if isinstance(op, Set):
        wanted.set(spaces, op.have)
    else:
        wanted.delete(spaces)


def _together(op: Op) -> Together | None:
    return _placed(op).together(deleting=isinstance(op, Delete))


def _placed(op: Op) -> SpaceObject:
    found = subject(op)
    if not isinstance(found, SpaceObject):
        raise TypeError(f"not an object of a namespace of ours: {op}")
    return found


def _places(space: Space, rows: Collection[Row]) -> set[Place]:
    """Return where the kernel has *rows*, on the devices that the last read showed."""
    devices = {name: space.listener.known(name) for name in {row.device for row in rows}}
    return {row.place(found) for row in rows if (found := devices[row.device]) is not None}


def _has_news(listener: Listener, ready: Collection[int]) -> bool:
    return listener.fileno() in ready and listener.heard()
