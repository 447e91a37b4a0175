"""The one thread that writes to the kernel: read, diff, apply, until wish and kernel agree.

A round looks at the networks whose part of the wish has changed; an audit looks at all of
them, and at namespaces that no network claims. What failed is tried again with growing
pauses. A network's trouble never holds up another's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from driver.desired import FALLBACK_UNDERLAY, desired, namespace_name
from driver.errors import DeadlineExceeded, KernelError
from driver.kernel import Kernel
from driver.model import Peer, Underlay
from driver.objects import FLOOD_MAC, FdbEntry, KernelState, Key, Kind, Namespace, Neighbour
from driver.peers import adopt
from driver.plan import Delete, Op, diff
from driver.state import State
from driver.store import Store
from driver.values import Address, Mac, NetworkId, NodeId

log = logging.getLogger(__name__)

AUDIT_INTERVAL = 30.0
"""Seconds between looks at everything, for what no event told us."""
_PASSES = 3
"""Rounds of read, diff and apply: a device made anew loses its rows, which the next pass adds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_SETTLE = 0.002
"""Seconds to wait for more of a burst of changes before a round starts."""
_SHARED = frozenset({Kind.NAMESPACE, Kind.BRIDGE, Kind.ADDRESS, Kind.VXLAN})


@dataclass(slots=True)
class _Progress:
    """What the engine has done for one network."""

    revision: int = 0
    errors: Mapping[Key, KernelError] = field(default_factory=dict)
    wish: tuple[object, ...] | None = None
    retry_at: float | None = None
    pause: float = _FIRST_PAUSE


class Engine:
    """Keeps the kernel equal to ``desired(state)``."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        *,
        audit_interval: float = AUDIT_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._audit_interval = audit_interval
        self._clock = clock
        self._work = threading.Event()
        self._stopping = False
        self._progress: dict[NetworkId, _Progress] = {}
        self._revision = 0
        self._underlay: tuple[Address | None, Underlay] | None = None
        self._done = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Adopt what a former process left in the kernel and begin."""
        self._store.subscribe(self._work.set)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the kernel's objects stay as they are."""
        self._stopping = True
        self._work.set()
        self._thread.join()
        self._kernel.close()

    def wait(self, network: NetworkId, revision: int, timeout: float, port: str = "") -> None:
        """Wait until the kernel has what *revision* asks for *network*.

        Trouble with rows of peers or with ports of other endpoints than *port* does not
        count. Raises the network's first KernelError, or DeadlineExceeded after *timeout*
        seconds.
        """
        with self._done:
            reached = self._done.wait_for(lambda: self._reached(network) >= revision, timeout)
            errors = self._progress[network].errors if network in self._progress else {}
        for key, error in sorted(errors.items()):
            if key[0] in _SHARED or (port and key[2] == port):
                raise error
        if not reached:
            raise DeadlineExceeded(f"network {network}: the kernel work was not done within {timeout:g} s")

    def _reached(self, network: NetworkId) -> int:
        progress = self._progress.get(network)
        return progress.revision if progress else self._revision

    def _run(self) -> None:
        self._adopt()
        audit_at = self._clock()
        while not self._stopping:
            audit = self._clock() >= audit_at
            if audit:
                audit_at = self._clock() + self._audit_interval
            try:
                self._round(audit=audit)
            except Exception:
                # One bad round must not end the thread that every Join waits for.
                log.exception("a reconcile round failed; trying again")
                self._work.wait(_LONGEST_PAUSE)
            self._work.wait(max(0.0, self._next(audit_at) - self._clock()))
            if not self._stopping:
                time.sleep(_SETTLE)
            self._work.clear()

    def _next(self, audit_at: float) -> float:
        return min([audit_at, *(p.retry_at for p in self._progress.values() if p.retry_at is not None)])

    def _round(self, *, audit: bool) -> None:
        state, revision = self._store.snapshot()
        underlay = self._read_underlay(state.host.vtep)
        for network in list(dict.fromkeys([*state.networks, *self._progress])):
            if self._stopping:
                return
            progress = self._progress.setdefault(network, _Progress())
            wish = _wish(state, network, underlay)
            due = progress.retry_at is not None and self._clock() >= progress.retry_at
            errors = progress.errors
            if audit or due or wish != progress.wish:
                errors = self._reconcile(state, network, underlay)
            self._settle(network, progress, wish, errors, revision, gone=network not in state.networks)
        with self._done:
            self._revision = revision
            self._done.notify_all()
        if audit:
            self._remove_orphans(state)

    def _settle(
        self,
        network: NetworkId,
        progress: _Progress,
        wish: tuple[object, ...],
        errors: Mapping[Key, KernelError],
        revision: int,
        *,
        gone: bool,
    ) -> None:
        fresh = errors is not progress.errors
        with self._done:
            progress.revision, progress.errors, progress.wish = revision, errors, wish
            if gone and not errors:
                del self._progress[network]
            self._done.notify_all()
        if not errors:
            progress.retry_at, progress.pause = None, _FIRST_PAUSE
        elif fresh:
            progress.retry_at = self._clock() + progress.pause
            progress.pause = min(progress.pause * 2, _LONGEST_PAUSE)

    def _reconcile(
        self, state: State, network: NetworkId, underlay: Underlay | KernelError
    ) -> Mapping[Key, KernelError]:
        namespace = Namespace(namespace_name(network))
        if isinstance(underlay, KernelError):
            return {namespace.key: underlay}
        want = desired(state, network, underlay)
        prune = network in state.peers.synced or not want
        try:
            errors = self._converge(network, namespace.name, want, prune_rows=prune)
        except KernelError as failure:
            errors = {namespace.key: failure}
        for key, error in list(errors.items())[:1]:
            log.warning("network %s: %s %s: %s (%d in all)", network, key[0].name, key[2], error, len(errors))
        return errors

    def _converge(
        self, network: NetworkId, namespace: str, want: KernelState, *, prune_rows: bool
    ) -> Mapping[Key, KernelError]:
        for _ in range(_PASSES):
            ops = diff(want, self._kernel.read(namespace), prune_rows=prune_rows)
            if not ops:
                return {}
            log.debug("network %s: %s", network, _summary(ops))
            if errors := self._kernel.apply(ops):
                return errors
        return {}

    def _read_underlay(self, vtep: Address | None) -> Underlay | KernelError:
        """Ask for the way to the others; when it is gone for now, go on with the last answer."""
        try:
            found = self._kernel.underlay(vtep)
        except KernelError as error:
            found = None
            log.warning("underlay of %s: %s", vtep, error)
        if found is not None:
            self._underlay = (vtep, found)
        if self._underlay is not None and self._underlay[0] == vtep:
            return self._underlay[1]
        if vtep is None:
            return FALLBACK_UNDERLAY
        return KernelError(
            f"VTEP address {vtep} is on no device of this host: "
            "set PYOVERLAY_VTEP to one of the host's addresses"
        )

    def _remove_orphans(self, state: State) -> None:
        wanted = {namespace_name(network) for network in (*state.networks, *self._progress)}
        for name in set(self._kernel.namespaces()) - wanted:
            log.warning("namespace %s belongs to no network of this host: removing it", name)
            orphan = Namespace(name)
            try:
                errors = self._kernel.apply(diff({}, {orphan.key: orphan, **self._kernel.read(name)}))
            except KernelError as failure:
                errors = {orphan.key: failure}
            for key, error in errors.items():
                log.warning("namespace %s: %s %s: %s", name, key[0].name, key[2], error)

    def _adopt(self) -> None:
        """Take the rows in the kernel as what the others had when the former process ended."""
        for network in self._store.state.networks:
            try:
                rows = _remote_rows(self._kernel.read(namespace_name(network)))
            except KernelError as error:
                log.warning("network %s: cannot read what is there: %s", network, error)
                continue
            if rows:
                self._store.update(partial(_adopted, network=network, rows=rows, now=self._clock()))


def _adopted(state: State, *, network: NetworkId, rows: Mapping[Address, Peer], now: float) -> State:
    return replace(state, peers=adopt(state.peers, network, rows, now))


def _wish(state: State, network: NetworkId, underlay: Underlay | KernelError) -> tuple[object, ...]:
    """Return all that desired() looks at for a network: equal tuples need no work."""
    endpoints = tuple(state.endpoints_of(network))
    ids = {e.id for e in endpoints}
    joining, recalled = state.joining & ids, state.recalled & ids
    peers = state.peers.entries.get(network)
    synced = network in state.peers.synced
    way = str(underlay) if isinstance(underlay, KernelError) else underlay
    return (state.networks.get(network), state.host, way, endpoints, joining, recalled, _Same(peers), synced)


class _Same:
    """Compares a large value by identity: peers.merge keeps the object when nothing changed."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _remote_rows(have: KernelState) -> dict[Address, Peer]:
    vteps: dict[tuple[str, Mac], Address] = {
        (o.device, o.mac): o.vtep for o in have.values() if isinstance(o, FdbEntry) and o.mac != FLOOD_MAC
    }
    neighbours = [o for o in have.values() if isinstance(o, Neighbour) and (o.device, o.mac) in vteps]
    return {n.address: Peer(n.mac, vteps[n.device, n.mac], NodeId("")) for n in neighbours}


def _summary(ops: list[Op]) -> str:
    deleted = sum(isinstance(op, Delete) for op in ops)
    return f"{len(ops) - deleted} to set, {deleted} to delete"
