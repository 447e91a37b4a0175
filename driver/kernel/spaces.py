"""The pinned namespaces of this host, each with a socket that stays open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from driver.kernel import netns
from driver.kernel.wire import Channel
from driver.objects import NAMESPACE_PREFIX


class _Space(NamedTuple):
    identity: tuple[int, int]
    channel: Channel


class Spaces:
    """Namespaces by name, under *directory*, which need not exist before the first is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, _Space] = {}

    def names(self) -> list[str]:
        """List what is pinned and ours, or open.

        Also the plain file that a process left which was killed between pinning's two steps: `drop` it.
        """
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = [n for n in os.listdir(self._directory) if n.startswith(NAMESPACE_PREFIX)]
        return sorted({*self._open, *found})

    def channel(self, name: str) -> Channel | None:
        """Return the socket into namespace *name*, None when there is none; raise OSError.

        When somebody removed the pin ("ip netns delete"), the namespace and its containers live
        on with our socket, and it is pinned again. When the pin is another namespace now, that
        one counts: the socket still works, but where nobody looks.
        """
        space = self._open.get(name)
        identity = netns.identity(self._directory / name)
        if space and identity is None:
            identity = self._pin_again(name, space)
        if space and space.identity == identity:
            return space.channel
        self._forget(name)
        if identity is None:
            return None
        with self.pinned(name) as descriptor:
            channel = netns.inside(descriptor, Channel.here)
        self._open[name] = _Space(identity, channel)
        return channel

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[int]:
        """Open namespace *name* for a while."""
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def make(self, name: str) -> None:
        """Create namespace *name*, or bring the settings of an existing one back; raise OSError."""
        path = self._directory / name
        if netns.is_pin(path):
            with self.pinned(name) as descriptor:
                netns.prepare(descriptor)
            return
        descriptor = netns.create()
        try:
            netns.pin(descriptor, path)
        finally:
            os.close(descriptor)

    def drop(self, name: str) -> None:
        """Let namespace *name* end; one that is gone is no error. Raises OSError."""
        self._forget(name)  # an open socket would keep it alive, and its VNIs busy
        netns.unpin(self._directory / name)

    def close(self) -> None:
        """Give back the sockets."""
        for name in list(self._open):
            self._forget(name)

    def _pin_again(self, name: str, space: _Space) -> tuple[int, int] | None:
        descriptor = space.channel.namespace()
        try:
            netns.pin(descriptor, self._directory / name)
        finally:
            os.close(descriptor)
        return netns.identity(self._directory / name)

    def _forget(self, name: str) -> None:
        space = self._open.pop(name, None)
        if space:
            space.channel.close()
