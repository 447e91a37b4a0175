"""The one thread that writes to the kernel: read, diff, apply, until wish and kernel agree.

A round looks at the networks whose part of the wish has changed, and of the rows of each at those
that the change concerns. It looks at all there is of a network of which the kernel had news; an
audit looks at all networks, and at namespaces that no network claims. What failed is tried again
with growing pauses. A network's trouble never holds up another's.

What a round finds to mend although the wish is the same is drift: somebody else changed it.
"""

from __future__ import annotations

import io
import logging
import math
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from driver.kernel import Kernel
from driver.kernel.kinds import SHARED, Namespace
from driver.kernel.names import namespace_name
from driver.kernel.objects import KernelState, Key, Kind
from driver.kernel.ops import Delete, Op
from driver.reconcile.adoption import adopt_kernel, withdraw
from driver.reconcile.desired import vanished
from driver.reconcile.drift import Finding, asked_for, findings, sentence
from driver.reconcile.part import Part, changed_part, whole
from driver.reconcile.plan import diff
from driver.reconcile.underlay import KnownUnderlay
from driver.wish.errors import DeadlineExceeded, KernelError
from driver.wish.model import Underlay
from driver.wish.state import State, without_doubtful
from driver.wish.values import HOST, EndpointId, NetworkId
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

AUDIT_INTERVAL = 30.0
"""Seconds between looks at everything, for what no event told us."""
_PASSES = 3
"""Rounds of read, diff and apply: a device made anew loses its rows, which the next pass adds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_LOOK_INTERVAL = 1.0
"""Seconds between two looks at a network for the kernel's news: somebody may be fighting us."""
_WITHDRAW_AFTER = 5.0
"""Seconds that a vanished port waits for the Leave that explains it."""
_FORGET_AFTER = 60.0
"""Seconds that a doubtful endpoint waits for its next call; the engine repeats one for 30 s."""
_SETTLE = 0.002
"""Seconds to wait for more of a burst of changes before a round starts; a Join does not wait."""


@dataclass(slots=True)
class _Progress:
    """What the engine has done for one network."""

    revision: int = 0
    errors: Mapping[Key, KernelError] = field(default_factory=dict)
    basis: _Basis | None = None
    state: State | None = None
    """What the wish is part of."""
    retry_at: float = math.inf
    pause: float = _FIRST_PAUSE
    look_at: float = math.inf
    """When to look for what the kernel told of."""
    looked_at: float = -math.inf
    missing: Mapping[EndpointId, float] = field(default_factory=dict)
    """Joined endpoints without a port, and since when."""

    @property
    def due_at(self) -> float:
        """When to look again although the wish is the same."""
        withdraw_at = min(self.missing.values(), default=math.inf) + _WITHDRAW_AFTER
        return min(self.retry_at, self.look_at, withdraw_at)


class NetworkReconciler:
    """Keeps the kernel equal to ``desired(state)``."""

    def __init__(
        self,
        wish: Wish,
        kernel: Kernel,
        *,
        shortcuts: bool = True,
        audit_interval: float = AUDIT_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*shortcuts* tells whether to have them where the kernel does."""
        self._wish = wish
        self._kernel = kernel
        self._audit_interval = audit_interval
        self._clock = clock
        self._wake = io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")
        self._stopping = False
        self._progress: dict[NetworkId, _Progress] = {}
        self._revision = 0
        self._doubted: Mapping[EndpointId, float] = {}
        """Doubtful endpoints, and since which audit."""
        self._way = KnownUnderlay(kernel)
        self.shortcuts = shortcuts
        self.repairs: Counter[Kind] = Counter()
        """How many objects were mended because somebody else had changed them."""
        self._done = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Adopt what a former process left in the kernel and begin.

        Nothing that has ended meanwhile is in the state's publication when this returns.
        """
        self.shortcuts = self.shortcuts and self._kernel.has_shortcuts()
        adopt_kernel(self._wish, self._kernel, self._clock)
        self._wish.subscribe(self._work)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the kernel's objects stay as they are."""
        self._stopping = True
        self._work()
        self._thread.join()
        self._kernel.close()
        self._wake.close()

    def wait_applied(self, network: NetworkId, revision: int, timeout: float, port: str = "") -> None:
        """Wait until the kernel has what *revision* asks for *network*.

        Trouble with rows of peers or with ports of other endpoints than *port* does not
        count. Raises the network's first KernelError, or DeadlineExceeded after *timeout*
        seconds.
        """
        with self._done:
            reached = self._done.wait_for(lambda: self._reached(network) >= revision, timeout)
            errors = self._progress[network].errors if network in self._progress else {}
        for key, error in sorted(errors.items()):
            if key.kind in SHARED or (port and key.name == port):
                raise error
        if not reached:
            raise DeadlineExceeded(f"network {network}: the kernel work was not done within {timeout:g} s")

    def wait_tried(self, revision: int, timeout: float) -> bool:
        """Wait until all that *revision* asks for was tried; return False after *timeout* seconds."""
        with self._done:
            return self._done.wait_for(lambda: self._revision >= revision, timeout)

    def _reached(self, network: NetworkId) -> int:
        progress = self._progress.get(network)
        return progress.revision if progress else self._revision

    def _work(self) -> None:
        with suppress(ValueError):  # stopped
            self._wake.write((1).to_bytes(8, sys.byteorder))

    def _run(self) -> None:
        audit_at = self._clock()
        while not self._stopping:
            audit = self._clock() >= audit_at
            if audit:
                audit_at = self._clock() + self._audit_interval
            try:
                self._round(audit=audit)
                self._await_work(audit_at)
            except Exception:
                # One bad round must not end the thread that every Join waits for.
                log.exception("a reconcile round failed; trying again")
                select.select([self._wake], [], [], _LONGEST_PAUSE)

    def _await_work(self, audit_at: float) -> None:
        due_at = min([audit_at, *(p.due_at for p in self._progress.values())])
        changed = self._kernel.await_news(max(0.0, due_at - self._clock()), self._wake.fileno())
        if HOST in changed:
            self._way.outdate()
        for network, progress in self._progress.items():
            if namespace_name(network) in changed:
                progress.look_at = max(self._clock(), progress.looked_at + _LOOK_INTERVAL)
        if not self._stopping and not self._wish.state.joining:
            time.sleep(_SETTLE)
        self._wake.read(8)

    def _round(self, *, audit: bool) -> None:
        state, revision = self._wish.snapshot()
        underlay = self._way.look(state.host.vtep, again=audit)
        for network in list(dict.fromkeys([*state.networks, *self._progress])):
            if self._stopping:
                return
            progress = self._progress.setdefault(network, _Progress())
            basis = _basis_of(state, network, underlay)
            errors = progress.errors
            due = audit or self._clock() >= progress.due_at
            if due or not basis.is_done_with(progress.basis):
                errors = self._reconcile(state, network, underlay, basis, due=due)
            self._settle(network, progress, basis, errors, revision, gone=network not in state.networks)
            progress.state = state
        with self._done:
            self._revision = revision
            self._done.notify_all()
        if audit:
            self._remove_orphans(state)
            self._forget(state)

    def _settle(
        self,
        network: NetworkId,
        progress: _Progress,
        basis: _Basis,
        errors: Mapping[Key, KernelError],
        revision: int,
        *,
        gone: bool,
    ) -> None:
        fresh = errors is not progress.errors
        with self._done:
            progress.revision, progress.errors, progress.basis = revision, errors, basis
            if gone and not errors:
                del self._progress[network]
            self._done.notify_all()
        if not errors:
            progress.retry_at, progress.pause = math.inf, _FIRST_PAUSE
        elif fresh:
            progress.retry_at = self._clock() + progress.pause
            progress.pause = min(progress.pause * 2, _LONGEST_PAUSE)

    def _reconcile(
        self, state: State, network: NetworkId, underlay: Underlay | KernelError, basis: _Basis, *, due: bool
    ) -> Mapping[Key, KernelError]:
        namespace = Namespace(namespace_name(network))
        progress = self._progress[network]
        if progress.look_at <= self._clock():
            progress.look_at, progress.looked_at = math.inf, self._clock()
        if isinstance(underlay, KernelError):
            progress.missing = {}
            return {namespace.key: underlay}
        goes_on = progress.basis is not None and basis.frame == progress.basis.frame and not progress.errors
        before = progress.state if goes_on else None
        try:
            if before is None or due:
                first = whole(before, state, network, underlay, shortcuts=self.shortcuts)
            else:
                first = changed_part(before, state, network, underlay, shortcuts=self.shortcuts)
            errors = self._converge(state, network, underlay, first)
        except KernelError as failure:
            progress.missing = {}  # nobody could see
            errors = {namespace.key: failure}
        for key, error in list(errors.items())[:1]:
            log.warning(
                "network %s: %s %s: %s (%d in all)", network, key.kind.word, key.name, error, len(errors)
            )
        return errors

    def _converge(
        self, state: State, network: NetworkId, underlay: Underlay, first: Part
    ) -> Mapping[Key, KernelError]:
        """Make the kernel hold what is wanted of the network; begin with *first*."""
        part: Part | None = first
        for attempt in range(_PASSES):
            part = part or whole(None, state, network, underlay, shortcuts=self.shortcuts)
            have = self._read(network, part)
            if have is None:
                part = None
                continue
            if attempt == 0:
                self._note_missing(network, vanished(state, network, have))
            prune = network in state.peers.synced or not part.want
            ops = diff(part.want, have, prune_rows=prune)
            if not ops:
                return {}
            log.debug("network %s: %s", network, _summary(ops))
            errors = self._kernel.apply(ops)
            if attempt == 0 and part.was is not None:
                self._note_drift(network, findings(ops, asked_for(ops, part.was, part.want)))
            if errors:
                return errors
            part = part.after(ops)
        return {}

    def _read(self, network: NetworkId, part: Part) -> KernelState | None:
        """Return what the kernel has in the place of *part*; None when it cannot read parts."""
        try:
            return self._kernel.read_place(namespace_name(network), part.rows)
        except KernelError:
            if part.rows is None:
                raise
            return None

    def _note_drift(self, network: NetworkId, found: Sequence[Finding]) -> None:
        self.repairs.update(finding.kind for finding in found)
        if found:
            log.warning("network %s: repaired: %s", network, sentence(found))

    def _note_missing(self, network: NetworkId, missing: Collection[EndpointId]) -> None:
        """Withdraw endpoints whose ports have been missing for so long that no Leave will come."""
        progress, now = self._progress[network], self._clock()
        since = {endpoint: progress.missing.get(endpoint, now) for endpoint in missing}
        gone = {endpoint for endpoint, then in since.items() if now - then >= _WITHDRAW_AFTER}
        progress.missing = {endpoint: then for endpoint, then in since.items() if endpoint not in gone}
        withdraw(self._wish, network, gone)

    def _forget(self, state: State) -> None:
        """Drop the records of endpoints that nobody has spoken of for long enough."""
        now = self._clock()
        doubtful = [e for e in state.endpoints if e in state.doubtful]
        self._doubted = {endpoint: self._doubted.get(endpoint, now) for endpoint in doubtful}
        old = [e for e, since in self._doubted.items() if now - since >= _FORGET_AFTER]
        if old:
            log.info("forgetting %d endpoints that ended unseen", len(old))
            self._wish.change(lambda state: without_doubtful(state, old), lasting=False)

    def _remove_orphans(self, state: State) -> None:
        wanted = {namespace_name(network) for network in (*state.networks, *self._progress)}
        for name in set(self._kernel.namespaces()) - wanted:
            log.warning("namespace %s belongs to no network of this host: removing it", name)
            orphan = Namespace(name)
            try:
                errors = self._kernel.apply(diff({}, {orphan.key: orphan, **self._kernel.read_place(name)}))
            except KernelError as failure:
                errors = {orphan.key: failure}
            for key, error in errors.items():
                log.warning("namespace %s: %s %s: %s", name, key.kind.word, key.name, error)


@dataclass(frozen=True, slots=True)
class _Basis:
    """All that desired() looks at for a network."""

    frame: tuple[object, ...]
    """Network, host, underlay, whether in sync: what concerns all rows."""
    rest: tuple[object, ...]
    joining: frozenset[EndpointId]

    def is_done_with(self, done: _Basis | None) -> bool:
        """Tell whether who has done *done* has no more to do: an answered Join asks for nothing."""
        return (
            done is not None
            and (self.frame, self.rest) == (done.frame, done.rest)
            and self.joining <= done.joining
        )


def _basis_of(state: State, network: NetworkId, underlay: Underlay | KernelError) -> _Basis:
    endpoints = tuple(state.endpoints_of(network))
    ids = {e.id for e in endpoints}
    peers = state.peers.entries.get(network)
    synced = network in state.peers.synced
    way = str(underlay) if isinstance(underlay, KernelError) else underlay
    return _Basis(
        (state.networks.get(network), state.host, way, synced),
        (endpoints, state.doubtful & ids, _Same(peers)),
        frozenset(state.joining.keys() & ids),
    )


class _Same:
    """Compares a large value by identity: peers.merge keeps the object when nothing changed."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _summary(ops: list[Op]) -> str:
    deleted = sum(isinstance(op, Delete) for op in ops)
    return f"{len(ops) - deleted} to set, {deleted} to delete"
