"""Keeps networks, and their part of the host's own namespace, as the wish has them: read, diff, apply.

Its items are scopes: the host, then each network, and namespaces that no network claims any more. The loop
decides when each has its turn (`loop`). When the wish for a network has changed, only the rows that the
change concerns are read; an audit, the kernel's news and a retry read everything.

What needs repair although the wish is the same is drift: somebody else changed it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from driver.kernel import Kernel
from driver.kernel.kinds import SHARED, Namespace, Port
from driver.kernel.names import NAMESPACE_PREFIX, namespace_name, place_of, port_of
from driver.kernel.objects import KernelState, Key, Kind, index
from driver.kernel.ops import Delete, Op, subject
from driver.reconcile.adoption import adopt_kernel, find_remains, withdraw
from driver.reconcile.announcements import announcements
from driver.reconcile.desired import FALLBACK_UNDERLAY, desired, vanished
from driver.reconcile.drift import Finding, asked_for, findings, sentence
from driver.reconcile.loop import Change, Progress, Reconciler
from driver.reconcile.part import Part, changed_part
from driver.reconcile.part import whole as whole_part
from driver.reconcile.plan import diff
from driver.reconcile.underlay import KnownUnderlay
from driver.wish.errors import DeadlineExceeded, KernelError
from driver.wish.model import Endpoint, Underlay
from driver.wish.remains import Remains
from driver.wish.state import State, without_doubtful
from driver.wish.values import HOST, EndpointId, NetworkId, Scope
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

AUDIT_INTERVAL = 30.0
"""Seconds between looks at everything, for changes without an event."""
_PASSES = 3
"""Rounds of read, diff and apply: a recreated device loses its rows, which the next round adds."""
_LOOK_INTERVAL = 1.0
"""Seconds between two looks at a network for the kernel's news: somebody may be fighting us."""
_WITHDRAW_AFTER = 5.0
"""Seconds that a vanished port waits for the Leave that explains it."""
_FORGET_AFTER = 60.0
"""Seconds that a doubtful endpoint waits for its next call; the engine repeats one for 30 s."""


@dataclass(slots=True)
class _Progress(Progress):
    """What has been done for one scope."""

    basis: _Basis | None = None
    state: State | None = None
    """What the wish is part of."""
    has_news: bool = False
    """Whether it must be checked because the kernel had news of it."""
    looked_at: float = -math.inf
    """When it was last checked for that reason."""
    missing: Mapping[EndpointId, float] = field(default_factory=dict)
    """Joined endpoints without a port, and since when."""


class NetworkReconciler(Reconciler[Scope, _Progress]):
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
        super().__init__("networks", wish, _Progress, audit_interval=audit_interval, clock=clock)
        self._kernel = kernel
        self._state = wish.state
        """As of the last survey, like the next two."""
        self._underlay: Underlay | KernelError = FALLBACK_UNDERLAY
        self._bases: Mapping[Scope, _Basis] = {}
        self._left: Mapping[str, str] = {}
        """Namespaces that no network claims and that are not removed, and why."""
        self._doubted: Mapping[EndpointId, float] = {}
        """Doubtful endpoints, and since which audit."""
        self._way = KnownUnderlay(kernel)
        self.remains: Mapping[NetworkId, Remains] = {}
        """What the kernel had, at the start, of networks that the wish did not know."""
        self.shortcuts = shortcuts
        self.repairs: Counter[Kind] = Counter()
        """How many objects were repaired because somebody else had changed them: for tests and the status."""

    def start(self) -> None:
        """Adopt what a former process left in the kernel and begin.

        When this returns, nothing that has ended in the meantime is in the state's publication.
        """
        self.shortcuts = self.shortcuts and self._kernel.has_shortcuts()
        adopt_kernel(self._wish, self._kernel, self._clock)
        self.remains = find_remains(self._kernel, self._wish.state.networks)
        super().start()

    def stop(self) -> None:
        """End the thread; the kernel's objects stay as they are."""
        super().stop()
        self._kernel.close()

    def wait_applied(self, network: NetworkId, revision: int, timeout: float, port: str = "") -> None:
        """Wait until the kernel has what *revision* asks for *network*.

        Trouble with rows of peers or with ports of other endpoints than *port* does not
        count. Raises the network's first KernelError, or DeadlineExceeded after *timeout*
        seconds.
        """
        with self._done:
            reached = self._done.wait_for(lambda: self._reached(network) >= revision, timeout)
            progress = self._progress.get(network) or _Progress()
            failure, errors = progress.failure, progress.errors
        if failure:
            raise KernelError(str(failure), failure.errno)
        for key, error in sorted(errors.items()):
            if key.kind in SHARED or (port and key.name == port):
                raise error
        if not reached:
            raise DeadlineExceeded(f"network {network}: the kernel work was not done within {timeout:g} s")

    def _reached(self, network: NetworkId) -> int:
        progress = self._progress.get(network)
        return progress.revision if progress else self._revision

    def _survey(self, state: State, revision: int) -> Mapping[Scope, Change]:
        """Compare with what was done for each scope; if two share a place, the one in the wish counts."""
        wished: list[Scope] = [HOST, *state.networks]
        scopes = {place_of(scope): scope for scope in wished}
        for scope, progress in self._progress.items():
            if progress.held or progress.is_troubled:
                scopes.setdefault(place_of(scope), scope)
        self._state, self._underlay = state, self._way.look(state.host.vtep)
        self._note_mtu()
        self._bases = dict(self._bases_of(scopes.values()))
        return {scope: self._change(scope, basis) for scope, basis in self._bases.items()}

    def _note_mtu(self) -> None:
        """Have the others told of the underlay's MTU; while it cannot be seen, the last one stands."""
        mtu = self._underlay.mtu if isinstance(self._underlay, Underlay) else self._state.mtu
        if mtu != self._state.mtu:
            self._wish.change(lambda state: replace(state, mtu=mtu))

    def _bases_of(self, scopes: Iterable[Scope]) -> Iterator[tuple[Scope, _Basis]]:
        state, underlay = self._state, self._underlay
        here: dict[NetworkId, list[Endpoint]] = defaultdict(list)
        for endpoint in state.endpoints.values():
            here[endpoint.network].append(endpoint)
        for scope in scopes:
            if scope is HOST:
                yield scope, _host_basis(state, underlay, shortcuts=self.shortcuts)
            else:
                yield scope, _basis(state, scope, underlay, tuple(here.get(scope, ())))

    def _change(self, scope: Scope, basis: _Basis) -> Change:
        """Tell whether there is work for *scope*, and whether it must not wait.

        Join and DeleteNetwork must not, nor what failed on another ground than the present one, nor the
        host, on which networks may rely.
        """
        progress = self._progress.get(scope) or _Progress()
        done, fails = progress.basis, progress.failure is not None
        if basis.is_done_with(done):
            progress.state = self._state  # an older one would keep old values alive
            return Change.NONE
        is_removed = done is not None and scope is not HOST and scope not in self._state.networks
        is_on_new_ground = fails and done is not None and basis.frame != done.frame
        if basis.joining or is_removed or is_on_new_ground or (scope is HOST and not fails):
            return Change.URGENT
        if fails:  # for this wish as well: a Join that comes back after it is another one
            progress.basis, progress.state = basis, self._state
        return Change.SOME

    def _await_news(self, timeout: float, wake: int) -> bool:
        """Note which scopes the kernel's news is about; a Join is in a hurry."""
        changed = self._kernel.await_news(timeout, wake)
        if HOST in changed:
            self._way.outdate()
            self._outdated = True
        for scope, progress in self._progress.items() if changed else ():
            if place_of(scope) in changed:
                progress.has_news = True
                progress.look(max(self._clock(), progress.looked_at + _LOOK_INTERVAL))
        return bool(self._wish.state.joining)

    def _label(self, item: Scope) -> str:
        return item if item is HOST else f"network {item}"

    def _reconcile(self, item: Scope, progress: _Progress, *, whole: bool) -> Mapping[Key, KernelError]:
        """Check all of a scope, or the part whose wish has changed, and bring it about."""
        if whole and progress.has_news:
            progress.has_news, progress.looked_at = False, self._clock()
        try:
            return self._converge(item, progress, self._part(item, progress, whole=whole))
        finally:
            if whole and item is HOST:
                self._look_after_host()

    def _part(self, scope: Scope, progress: _Progress, *, whole: bool) -> Part:
        """Return what to check; raise KernelError when there is no underlay to build on.

        A scope that has failed, or whose basis has changed, is checked as a whole.
        """
        basis, done, before = self._bases[scope], progress.basis, progress.state
        progress.basis, progress.state = basis, self._state
        underlay = self._known_underlay()
        if done is None or basis.frame != done.frame or progress.is_troubled:
            before = None
        if whole or scope is HOST or before is None:
            return whole_part(before, self._state, scope, underlay, shortcuts=self.shortcuts)
        return changed_part(before, self._state, scope, underlay, shortcuts=self.shortcuts)

    @property
    def underlay(self) -> Underlay:
        """The way to other hosts as it was seen last, or the fallback; safe for all threads."""
        seen = self._underlay
        return seen if isinstance(seen, Underlay) else FALLBACK_UNDERLAY

    def _known_underlay(self) -> Underlay:
        """Return the underlay; when there is none, have it looked up again and raise KernelError."""
        if isinstance(self._underlay, Underlay):
            return self._underlay
        self._way.outdate()
        self._outdated = True
        raise KernelError(str(self._underlay))

    def _converge(self, scope: Scope, progress: _Progress, first: Part) -> Mapping[Key, KernelError]:
        """Make the kernel hold what is wanted for *scope*, until reading it shows no difference.

        Starts with *first*. A difference there that nobody asked for is drift.
        """
        if scope is HOST and not first.want and not progress.held:
            return {}
        part, errors, drift = first, dict[Key, KernelError](), list[Finding]()
        for attempt in range(_PASSES + 1):
            part, have = self._read(scope, part)
            progress.held = bool(have)
            ops = diff(part.want, have, prune_rows=self._may_prune(scope, part))
            if attempt == 0:
                self._note_missing(scope, progress, have)
                drift = findings(ops, asked_for(ops, part.was, part.want)) if part.was is not None else []
            elif ops and attempt == _PASSES:
                return _not_kept(ops)
            log.debug("%s: %s", self._label(scope), _summary(ops))
            errors = dict(self._kernel.apply(ops)) if ops else {}
            self._announce(part, have, [op for op in ops if subject(op).key not in errors])
            if errors or not ops:
                break
            part = part.after(ops) or self._all_of(scope)
        self._note_drift(scope, drift)
        return errors

    def _announce(self, part: Part, have: KernelState, done: Sequence[Op]) -> None:
        """Let the containers that there were hear of addresses that are another's now."""
        endpoints = self._state.endpoints.values()
        for what in announcements(done, have, part.want, endpoints) if done else ():
            self._kernel.announce(what)

    def _read(self, scope: Scope, part: Part) -> tuple[Part, KernelState]:
        """Return what the kernel has in the place of *part*; all of it if the kernel cannot read parts."""
        place = place_of(scope)
        try:
            have = self._kernel.read_place(place, part.rows)
        except KernelError:
            if part.rows is None:
                raise
            return self._read(scope, self._all_of(scope))
        if not have and not part.want and place in self._kernel.namespaces():
            have = index([Namespace(place)])  # pinned, and otherwise empty
        return part, have

    def _all_of(self, scope: Scope) -> Part:
        return whole_part(None, self._state, scope, self._known_underlay(), shortcuts=self.shortcuts)

    def _may_prune(self, scope: Scope, part: Part) -> bool:
        """Tell whether unwanted rows are superfluous; they may only be unknown yet (see plan.diff)."""
        return scope is HOST or scope in self._state.peers.synced or not part.want

    def _note_drift(self, scope: Scope, found: Sequence[Finding]) -> None:
        self.repairs.update(finding.kind for finding in found)
        if found:
            log.warning("%s: repaired: %s", self._label(scope), sentence(found))

    def _note_missing(self, scope: Scope, progress: _Progress, have: KernelState) -> None:
        """Withdraw endpoints whose ports have been missing for too long for a Leave to come."""
        if scope is HOST:
            return
        now = self._clock()
        since = {e: progress.missing.get(e, now) for e in vanished(self._state, scope, have)}
        gone = {endpoint for endpoint, then in since.items() if now - then >= _WITHDRAW_AFTER}
        progress.missing = {endpoint: then for endpoint, then in since.items() if endpoint not in gone}
        progress.look(min(progress.missing.values(), default=math.inf) + _WITHDRAW_AFTER)
        withdraw(self._wish, scope, gone)

    def _look_after_host(self) -> None:
        """Do the host's own part of an audit, which is about no single network."""
        self._way.outdate()
        self._outdated = True
        self._forget()
        self._take_on_orphans()

    def _forget(self) -> None:
        """Drop the records of doubtful endpoints that no call has named for long enough."""
        now = self._clock()
        doubtful = [e for e in self._state.endpoints if e in self._state.doubtful]
        self._doubted = {endpoint: self._doubted.get(endpoint, now) for endpoint in doubtful}
        old = [e for e, since in self._doubted.items() if now - since >= _FORGET_AFTER]
        if old:
            log.info("forgetting %d endpoints that ended without a Leave", len(old))
            self._wish.change(lambda state: without_doubtful(state, old), lasting=False)

    def _take_on_orphans(self) -> None:
        """Treat each namespace that no network claims as that of an unwanted network: remove it.

        Not while a container uses it. Then our state was lost, or another instance made it.
        """
        claimed = {place_of(scope) for scope in self._progress}
        unclaimed = {name: _owner(name) for name in set(self._kernel.namespaces()) - claimed}
        reasons = {name: self._why_it_stays(name) for name, owner in unclaimed.items() if owner}
        for name, reason in sorted(reasons.items()):
            if not reason:
                log.warning("namespace %s belongs to no network of this host: removing it", name)
                with self._done:
                    self._progress[_owner(name)] = _Progress()
            elif reason != self._left.get(name):
                log.warning("namespace %s belongs to no network of this host, but stays: %s", name, reason)
        self._left = {name: reason for name, reason in reasons.items() if reason}

    def _why_it_stays(self, name: str) -> str:
        """Return why a namespace that no network claims must not be removed; nothing when it may be.

        A veth pair ends with the namespace of either end, so a port has a container unless its other end is
        in the host's own namespace.
        """
        try:
            ports = {key.name for key in self._kernel.read_place(name) if key.kind == Port.kind}
            used = ports - {port_of(end) for end in self._kernel.container_ends()}
        except KernelError as error:
            return f"whether containers use it cannot be told: {error}"
        return f"containers use it, by {', '.join(sorted(used))}" if used else ""


def _owner(namespace: str) -> NetworkId:
    """Return whose *namespace* is, by its name: nothing when it was not us who named it."""
    network = NetworkId(namespace.removeprefix(NAMESPACE_PREFIX))
    return network if namespace_name(network) == namespace else NetworkId("")


@dataclass(frozen=True, slots=True)
class _Basis:
    """Everything that desired() reads for a scope."""

    frame: tuple[object, ...]
    """What everything is built on: network, host, underlay, whether in sync."""
    rest: tuple[object, ...]
    joining: frozenset[EndpointId] = frozenset()

    def is_done_with(self, done: _Basis | None) -> bool:
        """Tell whether nothing is left to do after *done*: an answered Join asks for nothing."""
        return (
            done is not None
            and (self.frame, self.rest) == (done.frame, done.rest)
            and self.joining <= done.joining
        )


def _basis(
    state: State, network: NetworkId, underlay: Underlay | KernelError, endpoints: tuple[Endpoint, ...]
) -> _Basis:
    ids = {e.id for e in endpoints}
    return _Basis(
        (state.networks.get(network), state.host, _ground(underlay), network in state.peers.synced),
        (endpoints, state.doubtful & ids, _Same(state.peers.entries.get(network))),
        frozenset(state.joining.keys() & ids),
    )


def _host_basis(state: State, underlay: Underlay | KernelError, *, shortcuts: bool) -> _Basis:
    """For the host, compare its few objects themselves: any part of the wish may affect them."""
    want = None if isinstance(underlay, KernelError) else desired(state, HOST, underlay, shortcuts=shortcuts)
    return _Basis((state.host, _ground(underlay)), (want,))


def _ground(underlay: Underlay | KernelError) -> Underlay | str:
    return underlay if isinstance(underlay, Underlay) else str(underlay)


class _Same:
    """Compares a large value by identity: peers.merge keeps the object when nothing changed."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _not_kept(ops: Sequence[Op]) -> Mapping[Key, KernelError]:
    """Return the failures of objects that the kernel accepts several times but does not keep."""
    what = sentence(findings(ops)) or _summary(ops)
    error = KernelError(f"not converged: the kernel does not keep what was set: {what}")
    return {subject(op).key: error for op in ops}


def _summary(ops: Sequence[Op]) -> str:
    deleted = sum(isinstance(op, Delete) for op in ops)
    return f"{len(ops) - deleted} to set, {deleted} to delete"
