"""Fault points: every write of the product to kernel, disk or store is counted, and one can be the last.

The product knows nothing of them. They sit below it, in the functions that write: netlink batches (the
kernel works through one in a single system call), mounts, sysctls, the steps of replacing a file, and the
transactions of the control plane.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driver.cluster.etcd.client import EtcdClient
from driver.cluster.memory import MemoryStore
from driver.kernel import netns
from driver.kernel.netlink.socket import Channel

KILLED = -signal.SIGKILL
"""The exit status of who died at a fault point."""


class Points:
    """The writes since `arm`; the one with the number *fatal* is not done any more."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._fatal = 0
        self._armed = False
        self._lock = threading.Lock()

    def arm(self, fatal: int) -> None:
        """Count from now on; end the process before write number *fatal* (0: never)."""
        self._fatal = fatal
        self._armed = True

    def disarm(self) -> None:
        """Count no more."""
        self._armed = False

    def reach(self, name: str) -> None:
        """Note that a write is about to be done, and perhaps die instead."""
        if not self._armed:
            return
        with self._lock:
            self.passed.append(name)
            if len(self.passed) == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put the points in; there is no way back, so do it in a process of its own."""
        for owner, name in (
            (Channel, "_batch"),
            (netns, "_mount"),
            (netns._libc, "umount2"),
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (os, "unlink"),
            (os, "mkdir"),
            (Path, "write_text"),
            (EtcdClient, "change"),
            (EtcdClient, "grant"),
            (EtcdClient, "remove_orphans"),
            (MemoryStore, "do"),
        ):
            setattr(owner, name, self._before(name, getattr(owner, name)))
        plain_open = os.open

        def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.reach(f"create {path}")
            return plain_open(path, flags, *rest, **named)

        os.open = open_

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.reach(name)
            return function(*arguments, **named)

        return wrapped
