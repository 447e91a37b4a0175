"""Balancers in the containers' own namespaces, found by the paths under which the engine pins them.

No socket stays open for long: it would keep the namespace of a container that has ended. They are closed
together, because at the first one the kernel waits, for milliseconds, until everything removed is gone
(net/netfilter/nf_tables_api.c: nft_rcv_nl_event).

What a namespace holds is remembered with the generation of its tables, a number that grows with every
change by anybody: as long as it is the same, a look costs one question.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from driver.kernel import netns
from driver.kernel.balancers import conntrack, listing, nft, sockets
from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers.conntrack import Stale
from driver.kernel.degraded import degraded
from driver.kernel.kinds import Balancer, Services
from driver.kernel.netlink.socket import Channel, Refused, Request
from driver.kernel.objects import KernelState, Key
from driver.kernel.ops import Delete, Op, Set, subject
from driver.kernel.refusal import GONE, absent, failed
from driver.wish.errors import KernelError
from driver.wish.values import Address

log = logging.getLogger(__name__)

_TRIES = 3
_MAX_OPEN = 64
_SWEEP_PAUSE = 0.02
"""Seconds between two containers whose connections are searched."""


@dataclass(slots=True)
class _Held:
    """What a namespace held at one generation."""

    identity: tuple[int, int]
    generation: int
    balancers: dict[Key, Balancer]


class NetlinkSandboxes:
    """The containers' namespaces; *path_of* maps the engine's path of a namespace to ours."""

    def __init__(self, path_of: Callable[[str], Path] = Path) -> None:
        self._path_of = path_of
        self._held: dict[str, _Held] = {}
        self._open: dict[str, Channel] = {}
        """Kept only until the next wait."""
        self._stale: dict[str, Stale] = {}
        """What connections may still lead to, by sandbox. Cleaned up when there is nothing else to do."""
        self._difference: tuple[Services, Services, nft.Difference] | None = None
        self._mounts = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Give back sockets and descriptors; the tables stay."""
        self._close_all()
        self._mounts.close()

    def read_sandbox(self, sandbox: str) -> KernelState:
        """Every balancer of ours in *sandbox*; empty when there is no such namespace. See the Protocol."""
        identity = netns.identity(self._path_of(sandbox))
        if identity is None:
            self._held.pop(sandbox, None)
            return {}
        if sandbox in self._held and self._held[sandbox].identity != identity:
            self._close(sandbox)
        try:
            return self._read(sandbox, identity)
        except OSError as failure:
            self._held.pop(sandbox, None)
            raise KernelError(
                f"cannot read the tables in {sandbox}: {failure.strerror}", failure.errno or 0
            ) from failure

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        """Carry out *ops*. See the Protocol."""
        failures: dict[Key, KernelError] = {}
        for op in ops:
            try:
                self._apply(op)
            except KernelError as failure:
                failures[subject(op).key] = failure
            except OSError as failure:
                self._held.pop(subject(op).key.place, None)
                if not (isinstance(op, Delete) and failure.errno in GONE):
                    failures[subject(op).key] = failed(op, failure)
        return failures

    def cut(self, sandbox: str, dead: Collection[Address]) -> None:
        """End connections to *dead* backends, when there is nothing else to do. See the Protocol."""
        self._look_through(sandbox, Stale(dead=frozenset(dead)))

    def await_news(self, timeout: float, wake: int) -> bool:
        """Wait for *wake*, or for namespaces to come or go. See the Protocol."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        self._close_all()
        ready = poll.poll(0)
        while self._stale and not ready and time.monotonic() < deadline:
            self._end_connections(*self._stale.popitem())
            self._close_all()
            ready = poll.poll(_SWEEP_PAUSE * 1000)
        ready = ready or poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return any(descriptor == self._mounts.fileno() for descriptor, _ in ready)

    def _read(self, sandbox: str, identity: tuple[int, int]) -> KernelState:
        """Believe a listing only if the generation is the same after it: one is several requests."""
        channel = self._enter(sandbox)
        held: _Held | None = self._held.get(sandbox)
        for _ in range(_TRIES):
            generation = nft.generation(channel)
            if held and (held.identity, held.generation) == (identity, generation):
                return dict(held.balancers)
            tables = listing.read_tables(channel)
            found = [Balancer(sandbox, n, s or {}, sound=s is not None) for n, s in tables.items()]
            held = _Held(identity, generation, {one.key: one for one in found})
            self._held[sandbox] = held
        raise OSError(errno.EAGAIN, "somebody keeps changing them")

    def _apply(self, op: Op) -> None:
        """Change only what was read last: the kernel refuses when the generation has moved on since."""
        wanted = subject(op)
        if not isinstance(wanted, Balancer):
            raise TypeError(f"not a balancer: {op}")
        held = self._held.get(wanted.sandbox)
        if held is None:
            if isinstance(op, Set):
                raise absent(wanted, f"network namespace {wanted.sandbox}", errno.ENOENT)
            return
        have = held.balancers.get(wanted.key)
        requests = self._requests(have, wanted if isinstance(op, Set) else None)
        if requests:
            held.generation = self._commit(wanted.sandbox, requests, held.generation)
        held.balancers.pop(wanted.key, None)
        if isinstance(op, Set):
            held.balancers[wanted.key] = wanted

    def _commit(self, sandbox: str, requests: Sequence[Request], generation: int) -> int:
        channel = self._enter(sandbox)
        try:
            return nft.commit(channel, requests, generation)
        except Refused as refused:
            # "No such file": the kernel lacks a type of chain or expression, and has no module for it.
            number = errno.EOPNOTSUPP if refused.errno == errno.ENOENT else refused.errno
            raise Refused(number, refused.strerror) from refused

    def _requests(self, have: Balancer | None, want: Balancer | None) -> list[Request]:
        if have and want and have.sound:
            difference = self._between(have.services, want.services)
            self._look_through(want.sandbox, Stale(difference.left))
            return nft.change(want.namespace, difference, want.turn)
        removed = nft.remove(have.namespace) if have else []
        if want is None:
            return removed
        self._look_through(want.sandbox, Stale({vip: [vip] for vip in want.services}))
        return [*removed, *nft.create(want.namespace, want.services, want.turn)]

    def _look_through(self, sandbox: str, stale: Stale) -> None:
        if stale != Stale():
            self._stale[sandbox] = self._stale.get(sandbox, Stale()) | stale

    def _between(self, have: Services, want: Services) -> nft.Difference:
        """Compare only once what fifty containers have in common."""
        known = self._difference
        if known is None or known[0] is not have or known[1] is not want:
            self._difference = known = (have, want, nft.Difference.between(have, want))
        return known[2]

    def _end_connections(self, sandbox: str, stale: Stale) -> None:
        try:
            ended = conntrack.forget(self._enter(sandbox), stale)
        except OSError as failure:
            if failure.errno not in GONE:
                degraded("datagrams to a service may still go to a task that has ended", failure)
            log.debug("%s: connections are left as they are: %s", sandbox, failure)
        else:
            self._destroy_sockets(sandbox, ended)

    def _destroy_sockets(self, sandbox: str, ended: Sequence[sockets.Ends]) -> None:
        if not ended:
            return
        try:
            with closing(self._channel(sandbox, nf.NETLINK_SOCK_DIAG)) as channel:
                sockets.destroy(channel, ended)
        except OSError as failure:
            if failure.errno not in GONE:
                degraded("clients that only read may not notice that a task's host is gone", failure)
        log.info("%d connections to tasks that are gone were reset in %s", len(ended), sandbox)

    def _enter(self, sandbox: str) -> Channel:
        """Keep sockets open for one round, but not too many: each keeps its container's namespace alive."""
        if sandbox in self._open:
            return self._open[sandbox]
        if len(self._open) >= _MAX_OPEN:
            self._close_all()
        self._open[sandbox] = channel = self._channel(sandbox, nf.NETLINK_NETFILTER)
        return channel

    def _channel(self, sandbox: str, protocol: int) -> Channel:
        descriptor = os.open(self._path_of(sandbox), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return netns.visit(descriptor, lambda: Channel.here(protocol))
        finally:
            os.close(descriptor)

    def _close_all(self) -> None:
        for sandbox in list(self._open):
            self._close(sandbox)

    def _close(self, sandbox: str) -> None:
        channel = self._open.pop(sandbox, None)
        if channel:
            channel.close()
