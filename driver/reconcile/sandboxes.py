"""Keeps the balancers in containers' namespaces as they must be: read, diff, apply, sandbox by sandbox.

In a thread of its own, beside the networks': fifty containers with five hundred services take seconds to
fill, and no Join should wait for that. The loop decides when each sandbox has its turn (`loop`).
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from driver.kernel import Sandboxes
from driver.kernel.kinds import Balancer, Services
from driver.kernel.objects import KernelState, Key
from driver.reconcile.balancers import announced, balancers, usable
from driver.reconcile.drift import asked_for, findings, sentence
from driver.reconcile.loop import Change, Progress, Reconciler
from driver.reconcile.plan import diff
from driver.wish.errors import KernelError
from driver.wish.state import State
from driver.wish.values import Address, NetworkId
from driver.wish.wish import Wish

log = logging.getLogger(__name__)

AUDIT_INTERVAL = 5.0
"""Seconds between looks at every sandbox, for changes that somebody else made there."""
_PASSES = 3
"""Tries, when somebody else changes tables at the same moment."""
_UNSEEN = 30.0
"""Seconds that a container's namespace may take to appear before the operator is told."""
_PATIENCE = 1.0
"""Seconds to wait for the rows of what a table leads to."""


@dataclass(slots=True)
class _Progress(Progress):
    """What has been done for one sandbox."""

    wanted: Mapping[Key, Balancer] | None = None
    kept: Set[Key] = frozenset()
    """What had to stay as it is: it may be ours although the wish for it was unknown."""
    awaited: bool = False
    """The namespace does not exist, but may at any moment."""
    awaited_since: float = math.inf
    seen: bool = False
    """It was there: if it is not, the container has ended."""


@dataclass(slots=True)
class _Answer:
    """What was found usable and announced, and from what: equal questions get the same object."""

    question: tuple[object, ...] = ()
    services: Services | None = field(default_factory=dict)
    announced: frozenset[Address] = frozenset()


class SandboxReconciler(Reconciler[str, _Progress]):
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
        """*wait_rows* waits until the kernel has the rows of a revision, for at most so many seconds.

        A container that asks for the MAC of a backend without a row gets no answer, and asks again a second
        later. Rows and services arrive together when the store, or the plugin, is back.
        """
        super().__init__("sandboxes", wish, _Progress, audit_interval=audit_interval, clock=clock)
        self._kernel = kernel
        self._wait_rows = wait_rows
        self._answers: dict[NetworkId, _Answer] = {}
        self._wanted: Mapping[str, Mapping[Key, Balancer]] = {}
        """By sandbox, as of the last survey, like the next one."""
        self._kept: Set[Key] = frozenset()
        self._has_told = False
        """Whether the operator knows that there are namespaces that cannot be seen."""

    def stop(self) -> None:
        """End the thread; the tables stay as they are."""
        super().stop()
        self._kernel.close()

    def _survey(self, state: State, revision: int) -> Mapping[str, Change]:
        self._wait_rows(revision, _PATIENCE)
        self._wanted, self._kept = balancers(state, self._usable(state))
        left = [box for box, p in self._progress.items() if p.held or p.is_troubled]
        return {sandbox: self._change(sandbox) for sandbox in [*self._wanted, *left]}

    def _change(self, sandbox: str) -> Change:
        progress = self._progress.get(sandbox)
        is_as_before = progress is not None and progress.wanted == self._wanted.get(sandbox, {})
        return Change.NONE if is_as_before else Change.SOME

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
                there, answer.announced = answer.announced, announced(state, network)
                self._cut(state, network, there - answer.announced)
        return {network: answer.services for network, answer in self._answers.items()}

    def _cut(self, state: State, network: NetworkId, dead: Set[Address]) -> None:
        """End the connections of a network's containers to addresses that nobody has any more."""
        for endpoint in state.endpoints.values() if dead else ():
            if endpoint.network == network and endpoint.sandbox:
                self._kernel.cut(endpoint.sandbox, dead)

    def _await_news(self, timeout: float, wake: int) -> bool:
        """Retry sandboxes whose namespaces may have appeared: in a new one a program is about to start."""
        came = self._kernel.await_news(timeout, wake)
        awaited = [progress for progress in self._progress.values() if came and progress.awaited]
        for progress in awaited:
            progress.look(self._clock())
        return bool(awaited)

    def _label(self, item: str) -> str:
        return f"services of {item}"

    def _reason(self, errors: Mapping[Key, KernelError]) -> str:
        """Say nothing about a namespace that does not exist (yet)."""
        error = next(iter(errors.values()))
        return "" if error.errno == errno.ENOENT else str(error)

    def _reconcile(self, item: str, progress: _Progress, *, whole: bool) -> Mapping[Key, KernelError]:
        """Make a sandbox hold its tables. Everything is read each time, and again if somebody interferes."""
        was, known = None if progress.is_troubled else progress.wanted, progress.kept
        wanted, kept = self._wanted.get(item, {}), self._kept
        progress.wanted, progress.kept, progress.awaited = wanted, kept, False
        for _ in range(_PASSES):
            have = self._kernel.read_sandbox(item)
            progress.held = bool(have)
            ops = diff(wanted, _without(have, kept))
            if not ops:
                return {}
            errors = self._kernel.apply(ops)
            if not errors:
                progress.seen = True
                progress.held = bool(wanted) or not have.keys().isdisjoint(kept)
                if was is not None and (found := findings(ops, asked_for(ops, was, wanted) | known)):
                    log.warning("repaired: %s", sentence(found))
                return {}
            number = next(iter(errors.values())).errno
            if number != errno.ERESTART:
                break
        progress.awaited = number == errno.ENOENT
        if progress.awaited and not (progress.seen or self._has_told):
            self._note_unseen(item, progress)
        return errors

    def _note_unseen(self, sandbox: str, progress: _Progress) -> None:
        """Tell once of namespaces that never appear: the engine keeps them where this process cannot look."""
        progress.awaited_since = min(progress.awaited_since, self._clock())
        if self._clock() - progress.awaited_since < _UNSEEN:
            return
        self._has_told = True
        log.warning(
            "the network namespace %s of a container cannot be seen from here, so the virtual addresses of "
            "services do not work in it, nor in others; run the engine with an --exec-root below /run",
            sandbox,
        )


def _without(have: KernelState, kept: Set[Key]) -> KernelState:
    return {key: obj for key, obj in have.items() if key not in kept}


def _question(state: State, network: NetworkId) -> tuple[object, ...]:
    """Return all that `usable` reads for a network. Large values are mostly compared by identity."""
    here = tuple(e for e in state.receivers() if e.network == network)
    stale = frozenset(id_ for id_, node in state.peers.nodes.items() if node.stale_since is not None)
    services, peers = state.services.get(network), state.peers.entries.get(network)
    return (services, peers, network in state.peers.synced, here, stale)
