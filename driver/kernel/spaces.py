"""The namespaces that we work in: the host's own and the pinned ones, each with sockets that stay open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from driver.kernel import netns
from driver.kernel.announce import Announcer
from driver.kernel.names import NAMESPACE_PREFIX
from driver.kernel.netlink.events import SpaceListener
from driver.kernel.netlink.socket import Channel
from driver.wish.values import HOST


class Space(NamedTuple):
    """A namespace that is open."""

    identity: tuple[int, int]
    channel: Channel
    listener: SpaceListener
    announcer: Announcer


class Spaces:
    """Namespaces by name, under *directory*, which need not exist before the first is made.

    "The host" is the network namespace of the thread that makes this.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.host = Channel.here()
        self.home = netns.current()
        """The host's namespace, as a descriptor."""
        self.open: dict[str, Space] = {}

    def names(self) -> list[str]:
        """List what is pinned and ours, or open.

        Includes the plain file left by a process killed between the two steps of pinning, for `drop`.
        """
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = [n for n in os.listdir(self._directory) if n.startswith(NAMESPACE_PREFIX)]
        return sorted({*self.open, *found})

    def channel(self, name: str) -> Channel | None:
        """Return the socket into namespace *name*, or into HOST; None when there is none. Raises OSError."""
        if name is HOST:
            return self.host
        space = self.space(name)
        return space.channel if space else None

    def space(self, name: str) -> Space | None:
        """Return namespace *name*, None when there is none; raise OSError.

        When somebody removed the pin, the namespace lives on with our sockets. When the pin now leads to
        another namespace, that one counts: our sockets would still work, but where nobody looks.
        """
        space = self.open.get(name)
        identity = netns.identity(self._directory / name)
        if space and identity in (None, space.identity):
            return space
        self._forget(name)
        if identity is None:
            return None
        with self.pinned(name) as descriptor:
            channel, listener = netns.inside(descriptor, lambda: (Channel.here(), SpaceListener.here()))
        self.open[name] = Space(identity, channel, listener, Announcer(channel))
        return self.open[name]

    def is_pinned(self, name: str) -> bool:
        """Tell whether others can find namespace *name*."""
        return netns.is_pin(self._directory / name)

    def moved(self) -> set[str]:
        """Return the open namespaces whose pin is gone, or is another namespace by now."""
        return {n for n, space in self.open.items() if netns.identity(self._directory / n) != space.identity}

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[int]:
        """Open namespace *name* for a while."""
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def make(self, name: str) -> None:
        """Create namespace *name*, or bring pin and settings of an existing one back; raise OSError."""
        path = self._directory / name
        if netns.is_pin(path):
            with self.pinned(name) as descriptor:
                netns.prepare(descriptor)
            return
        space = self.open.get(name)
        descriptor = space.channel.namespace() if space else netns.create()
        try:
            netns.pin(descriptor, path)
        finally:
            os.close(descriptor)

    def drop(self, name: str) -> None:
        """Let namespace *name* go; one that is gone is no error. Raises OSError."""
        self._forget(name)  # an open socket would keep it alive, and its VNIs busy
        netns.unpin(self._directory / name)

    def close(self) -> None:
        """Give back the sockets."""
        for name in list(self.open):
            self._forget(name)
        self.host.close()
        with contextlib.suppress(OSError):
            os.close(self.home)

    def _forget(self, name: str) -> None:
        space = self.open.pop(name, None)
        if space:
            space.channel.close()
            space.listener.close()
            space.announcer.close()
