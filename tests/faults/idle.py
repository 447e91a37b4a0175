"""A connection to a virtual address that says nothing for as long as the suite runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.hosts import Host
from tests.kernel.machine import running
from tests.kernel.test_balancing import TASKS, VIP, World

_PORT = 81


@dataclass(frozen=True, slots=True)
class Idle:
    """Both ends of it."""

    since: float
    """When it was opened (time.monotonic)."""
    client: socket.socket
    server: socket.socket

    def check(self) -> None:
        """Say something, both ways."""
        for one, other in ((self.client, self.server), (self.server, self.client)):
            one.sendall(b"still here")
            assert other.recv(100) == b"still here"


@contextmanager
def idle_connection(folder: Path) -> Iterator[Idle]:
    """Open one from a container of one host to one of another, then let the address lead elsewhere."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(closing(Host(folder / f"netns{n}"))) for n in range(2)]
        world = stack.enter_context(closing(World(stack.enter_context(running(hosts)))))
        world.say(web=[VIP, TASKS[1]])
        listener = stack.enter_context(world.tasks[1].space.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("0.0.0.0", _PORT))
        listener.listen()
        client = stack.enter_context(world.client.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect((VIP, _PORT))
        server = stack.enter_context(listener.accept()[0])
        idle = Idle(time.monotonic(), client, server)
        idle.check()
        world.say(web=[VIP, TASKS[0]])
        yield idle
