"""The control plane of a host that is alone, and of many hosts in one test.

Several planes on one MemoryStore see each other as hosts do through etcd, with the same
words for the same things: keys, revisions, and a view that freezes while the store is away.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from driver.cluster.ledger.claims import Claim, Put, Withdraw
from driver.cluster.ledger.codec import NODES, Scope, node_key
from driver.cluster.ledger.ledger import Ledger
from driver.cluster.ledger.table import Entry
from driver.wish.records import Publication, View
from driver.wish.values import NodeId
from lib.supervised import Supervised

_BATCH = 128
_LEASE = 1
_LAST_WORDS = 3.0


class MemoryStore:
    """Keys and values with revisions, as etcd has them, and switches for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[str, Entry] = {}
        self._revision = 1
        self._away = False
        self._generation = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def generation(self) -> int:
        """Which store this is: another number after replace()."""
        return self._generation

    @property
    def away(self) -> bool:
        """Whether nobody can reach the store."""
        return self._away

    def set_away(self, away: bool) -> None:
        """Cut all planes off, or let them back."""
        self._away = away
        self._notify()

    def replace(self) -> None:
        """Put an empty store in the place of this one."""
        with self._lock:
            self._data = {}
            self._revision = 1
            self._generation += 1
        self._notify()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have *listener* called after every change; it must return at once."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._listeners.remove(listener)

    def read_scope(self, scope: Scope) -> tuple[list[Entry], int]:
        """Return all entries of *scope* and the revision as of which they are all."""
        with self._lock:
            return [e for key, e in self._data.items() if key.startswith(scope)], self._revision

    def dump(self) -> dict[str, str]:
        """Return all keys and values."""
        with self._lock:
            return {key: entry.value or "" for key, entry in self._data.items()}

    def do(self, claim: Claim) -> tuple[bool, int]:
        """Carry out *claim*; return whether its condition held, and the revision."""
        with self._lock:
            done = self._allows(claim)
            if done:
                self._revision += 1
                if isinstance(claim, Put):
                    self._data[claim.key] = Entry(claim.key, claim.value, self._revision)
                else:
                    del self._data[claim.key]
            revision = self._revision
        if done:
            self._notify()
        return done, revision

    def _allows(self, claim: Claim) -> bool:
        there = self._data.get(claim.key)
        if isinstance(claim, Put):
            return there is None or not claim.if_absent
        return there is not None and there.value == claim.value

    def _notify(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


class MemoryControlPlane:
    """A ControlPlane on a MemoryStore; without one given, on a store of its own."""

    def __init__(self, node: NodeId, store: MemoryStore | None = None) -> None:
        self._store = store or MemoryStore()
        self._node = node
        self._ledger = Ledger(node)
        self._changed = threading.Condition()
        self._cut = False
        self._generation = self._store.generation
        self._told = View()
        self._thread = Supervised("store-memory", self._turn)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, for those who want to know how they fare."""
        return (self._thread,)

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; see ControlPlane."""
        self._on_view = on_view
        self._store.listen(self._thread.wake)
        self._thread.start()

    def publish(self, publication: Publication) -> None:
        """Replace what this host says; see ControlPlane."""
        with self._changed:
            self._ledger.set_publication(publication)
        self._thread.wake()

    def wait_published(self, timeout: float) -> bool:
        """Wait until the store has it; see ControlPlane."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._settled():
                left = deadline - time.monotonic()
                if self._away() or left <= 0 or self._thread.stopping:
                    return False
                self._changed.wait(left)
            return True

    def stop(self, *, leave: bool) -> None:
        """End; see ControlPlane."""
        was_started = self._thread.alive
        if leave and was_started:
            self.publish(Publication())
        if was_started:
            self.wait_published(_LAST_WORDS)
        self._thread.end()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()
        if was_started:
            self._store.unlisten(self._thread.wake)

    def cut(self, cut: bool) -> None:
        """Cut this plane alone off from the store, or let it back; its lease ends meanwhile."""
        self._cut = cut
        for entry in self._store.read_scope(NODES)[0]:
            if cut and entry.key == node_key(self._node):
                self._store.do(Withdraw(entry.key, entry.value or ""))
        self._thread.wake()

    def _away(self) -> bool:
        return self._cut or self._store.away

    def _settled(self) -> bool:
        wanted = self._ledger.view(connected=True)
        return not self._thread.woken and self._told == wanted and self._ledger.settled(_LEASE)

    def _turn(self) -> float:
        """Bring our records in, and tell the user of the view, if it is another one."""
        with self._changed:
            view = self._look()
        if view != self._told:
            try:
                self._on_view(view)
            except Exception as error:  # whoever uses the views must not end them
                self._thread.failed(error)
        with self._changed:
            self._told = view
            self._changed.notify_all()
        return math.inf

    def _look(self) -> View:
        """Read the store, bring our records in, and return the view."""
        if self._away():
            return self._ledger.view(connected=False)
        if self._generation != self._store.generation:
            self._generation = self._store.generation
            self._ledger.restart()
        self._read()
        if self._work():
            self._read()
        return self._ledger.view(connected=True)

    def _read(self) -> None:
        for scope in (NODES, *self._ledger.followed()):
            entries, revision = self._store.read_scope(scope)
            self._ledger.load_scope(scope, entries, revision)

    def _work(self) -> bool:
        """Do what is pending; tell whether there was anything."""
        worked = False
        while claims := self._ledger.pending(_BATCH):
            worked = True
            for claim in claims:
                self._ledger.answered(claim, *self._store.do(claim))
        if (node := self._ledger.pending_node(_LEASE)) is not None:
            worked = True
            _, revision = self._store.do(node)
            self._ledger.answered_node(node, _LEASE, revision)
        return worked
