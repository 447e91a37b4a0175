"""Containers' namespaces in memory; tests/kernel/test_sandboxes.py holds them to the real ones' rules."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from driver.kernel.kinds import Balancer, Services
from driver.kernel.objects import KernelState, Key
from driver.kernel.ops import Delete, Op, Set, subject
from driver.wish.errors import KernelError
from driver.wish.values import Address


class FakeSandboxes:
    """The Sandboxes protocol on a dict: *there* are the namespaces that exist, and what they hold."""

    def __init__(self, *names: str) -> None:
        self.there: dict[str, dict[Key, Balancer]] = {name: {} for name in names}
        self.applied: list[Op] = []
        self.cuts: dict[str, set[Address]] = defaultdict(set)
        """What was to be cut off, by namespace."""
        self.closed = False
        self._failures: dict[str, int] = {}
        self._read: dict[str, dict[Key, Balancer]] = {}
        self._news = False
        self._wake: int | None = None
        self._lock = threading.RLock()
        """Nobody sees, or changes, half of what another does."""

    def read_sandbox(self, sandbox: str) -> KernelState:
        with self._lock:
            found = dict(self.there.get(sandbox, {}))
            self._read[sandbox] = found
            return dict(found)

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        failures: dict[Key, KernelError] = {}
        for op in ops:
            obj = subject(op)
            if not isinstance(obj, Balancer):
                raise TypeError(obj)
            with self._lock:
                number = self._apply(op, obj)
            if number:
                failures[obj.key] = KernelError(f"cannot set {obj.key}: {os.strerror(number)}", number)
        return failures

    def _apply(self, op: Op, obj: Balancer) -> int:
        self.applied.append(op)
        number = self._refuses(op, obj)
        if not number and isinstance(op, Set):
            self.there[obj.sandbox][obj.key] = obj
        elif not number:
            self.there.get(obj.sandbox, {}).pop(obj.key, None)
        self._read[obj.sandbox] = dict(self.there.get(obj.sandbox, {}))
        return number

    def cut(self, sandbox: str, dead: Collection[Address]) -> None:
        self.cuts[sandbox] |= set(dead)

    def await_news(self, timeout: float, wake: int) -> bool:
        self._wake = wake
        if not self._news:
            select.select([wake], [], [], timeout)
        with self._lock:
            self._wake = None
            told, self._news = self._news, False
        return told

    def close(self) -> None:
        self.closed = True

    # What tests arrange and ask.

    def appear(self, sandbox: str) -> None:
        """Have a namespace come up, as the engine's do after Join (20.10 to 27)."""
        with self._lock:
            self.there[sandbox] = {}
            self._news = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def vanish(self, sandbox: str) -> None:
        """Have one end, with all that is in it."""
        with self._lock:
            self.there.pop(sandbox, None)

    def spoil(self, obj: Balancer) -> None:
        """Change a table behind the driver's back."""
        with self._lock:
            self.there[obj.sandbox][obj.key] = obj

    def fail(self, sandbox: str, number: int) -> None:
        """Refuse all that is to be set in one namespace; 0: no more."""
        self._failures[sandbox] = number

    def services(self, sandbox: str) -> dict[str, Services]:
        """What a namespace holds, by network."""
        with self._lock:
            return {one.namespace: one.services for one in self.there.get(sandbox, {}).values()}

    def _refuses(self, op: Op, obj: Balancer) -> int:
        if obj.sandbox not in self.there:
            return 0 if isinstance(op, Delete) else errno.ENOENT
        if self._read.get(obj.sandbox) != self.there[obj.sandbox]:
            return errno.ERESTART
        return self._failures.get(obj.sandbox, 0) if isinstance(op, Set) else 0
