"""Keeps the balancers in containers' namespaces as they must be: read, diff, apply, sandbox by sandbox.

In a thread of its own, beside the engine's: fifty containers with five hundred services take seconds to
fill, and no Join shall wait for that. One sandbox's trouble never holds up another's.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field

from driver.kernel import Sandboxes
from driver.kernel.kinds import Balancer, Services
from driver.kernel.objects import KernelState, Key
from driver.reconcile.balancers import balancers, usable
from driver.reconcile.drift import asked_for, findings, sentence
from driver.reconcile.plan import diff
from driver.wish.errors import KernelError
from driver.wish.state import State
from driver.wish.values import NetworkId
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

AUDIT_INTERVAL = 5.0
"""Seconds between looks at every sandbox, for what a hand has changed there."""
_PASSES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SETTLE = 0.002
"""Seconds to wait for more of a burst of changes before a round starts."""
_PATIENCE = 1.0
"""Seconds that a round waits for the rows of what it leads to."""


@dataclass(slots=True)
class _Progress:
    """What has been done for one sandbox."""

    wanted: Mapping[Key, Balancer] | None = None
    kept: Set[Key] = frozenset()
    """What was to stay as it is: it may be ours although no wish was known."""
    held: bool = False
    """Whether there was anything of ours at the last look."""
    retry_at: float = math.inf
    pause: float = _FIRST_PAUSE
    awaited: bool = False
    """The namespace is not there, and may be at any moment."""
    failure: str = ""


@dataclass(slots=True)
class _Answer:
    """What was found usable, and of what: equal questions get the same object."""

    question: tuple[object, ...] = ()
    services: Services | None = field(default_factory=dict)


class SandboxReconciler:
    """Keeps all sandboxes equal to ``balancers(state)``."""

    def __init__(
        self,
        wish: Wish,
        kernel: Sandboxes,
        *,
        wait_rows: Callable[[int, float], bool] = lambda _revision, _timeout: True,
        audit_interval: float = AUDIT_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*wait_rows* waits until the kernel has the rows of a revision, for so many seconds.

        A container that asks for the MAC of a backend without a row hears nothing, and asks again a second
        later. Rows and services come together when the store is back, or the plugin.
        """
        self._wish = wish
        self._kernel = kernel
        self._wait_rows = wait_rows
        self._audit_interval = audit_interval
        self._clock = clock
        self._wake = io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")
        self._stopping = False
        self._progress: dict[str, _Progress] = {}
        self._answers: dict[NetworkId, _Answer] = {}
        self._revision = 0
        self._done = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="balancing", daemon=True)

    def start(self) -> None:
        """Begin; what a former process left is taken over."""
        self._wish.subscribe(self._work)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the tables stay as they are."""
        self._stopping = True
        self._work()
        self._thread.join()
        self._kernel.close()
        self._wake.close()

    def wait_tried(self, revision: int, timeout: float) -> bool:
        """Wait until all that *revision* asks for was tried; return False after *timeout* seconds."""
        with self._done:
            return self._done.wait_for(lambda: self._revision >= revision, timeout)

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
                log.exception("a round of balancing failed; trying again")
                select.select([self._wake], [], [], _LONGEST_PAUSE)

    def _await_work(self, audit_at: float) -> None:
        due_at = min([audit_at, *(p.retry_at for p in self._progress.values())])
        came = self._kernel.await_news(max(0.0, due_at - self._clock()), self._wake.fileno())
        awaited = [progress for progress in self._progress.values() if came and progress.awaited]
        for progress in awaited:
            progress.retry_at = self._clock()
        if not awaited and not self._stopping:  # in a namespace that has come, a program is about to start
            time.sleep(_SETTLE)
        self._wake.read(8)

    def _round(self, *, audit: bool) -> None:
        state, revision = self._wish.snapshot()
        self._wait_rows(revision, _PATIENCE)
        by_sandbox, kept = balancers(state, self._usable(state))
        for sandbox in [*by_sandbox, *(self._progress.keys() - by_sandbox.keys())]:
            if self._stopping:
                return
            progress = self._progress.setdefault(sandbox, _Progress())
            wanted = by_sandbox.get(sandbox, {})
            if audit or wanted != progress.wanted or self._clock() >= progress.retry_at:
                self._reconcile(sandbox, progress, wanted, kept)
            if sandbox not in by_sandbox and not progress.held and not progress.failure:
                del self._progress[sandbox]
        with self._done:
            self._revision = revision
            self._done.notify_all()

    def _usable(self, state: State) -> dict[NetworkId, Services | None]:
        """Return what is usable in each network with containers here."""
        networks = {e.network for e in state.endpoints.values() if e.sandbox}
        self._answers = {network: self._answers.get(network, _Answer()) for network in networks}
        for network, answer in self._answers.items():
            question = _question(state, network)
            if question != answer.question:
                services = usable(state, network)
                answer.question = question
                answer.services = answer.services if services == answer.services else services
        return {network: answer.services for network, answer in self._answers.items()}

    def _reconcile(
        self, sandbox: str, progress: _Progress, wanted: Mapping[Key, Balancer], kept: set[Key]
    ) -> None:
        progress.awaited = False
        try:
            failure = self._converge(sandbox, progress, wanted, kept)
        except KernelError as error:
            failure = error
        progress.wanted, progress.kept = wanted, kept
        if failure is None:
            progress.retry_at, progress.pause, progress.failure = math.inf, _FIRST_PAUSE, ""
            return
        progress.awaited = failure.errno == errno.ENOENT
        if str(failure) != progress.failure and not progress.awaited:
            log.warning("services of %s: %s", sandbox, failure)
        progress.failure = str(failure)
        progress.retry_at = self._clock() + progress.pause
        progress.pause = min(progress.pause * 2, _LONGEST_PAUSE)

    def _converge(
        self, sandbox: str, progress: _Progress, wanted: Mapping[Key, Balancer], kept: set[Key]
    ) -> KernelError | None:
        failure = None
        for _ in range(_PASSES):
            have = self._kernel.read_sandbox(sandbox)
            progress.held = bool(have)
            ops = diff(wanted, _without(have, kept))
            if not ops:
                return None
            failure = next(iter(self._kernel.apply(ops).values()), None)
            if failure is None:
                progress.held = bool(wanted) or not have.keys().isdisjoint(kept)
                was = None if progress.failure else progress.wanted
                if was is not None and (found := findings(ops, asked_for(ops, was, wanted) | progress.kept)):
                    log.warning("repaired: %s", sentence(found))
                return None
            if failure.errno != errno.ERESTART:
                return failure
        return failure


def _without(have: KernelState, kept: set[Key]) -> KernelState:
    return {key: obj for key, obj in have.items() if key not in kept}


def _question(state: State, network: NetworkId) -> tuple[object, ...]:
    """Return all that `usable` looks at for a network. Large values are compared by identity, mostly."""
    here = tuple(e for e in state.receivers() if e.network == network)
    stale = frozenset(id_ for id_, node in state.peers.nodes.items() if node.stale_since is not None)
    services, peers = state.services.get(network), state.peers.entries.get(network)
    return (services, peers, network in state.peers.synced, here, stale)
