"""A TCP relay that can fail."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
from collections.abc import Callable


def free_port() -> int:
    """Return a port that nobody has, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Relay:
    """A TCP relay on loopback that can be cut (refuses, closes) or clogged (accepts, says nothing)."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.carried = 0
        """Bytes, both ways."""
        self.port = free_port()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._orders: list[Callable[[], None]] = []
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._closed = False
        self._clogged = False
        self._listen()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        self._order(self._cut)

    def mend(self) -> None:
        self._order(self._listen)

    def clog(self) -> None:
        self._order(self._clog)

    def close(self) -> None:
        self._order(self._finish)
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.append(lambda: (order(), done.set())[0])  # type: ignore[func-returns-value]
        with contextlib.suppress(OSError):  # the thread may have seen it, and have ended, already
            self._waker.send(b"x")
        done.wait(5)

    def _listen(self) -> None:
        self._clogged = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _cut(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for sock in list(self._pairs):
            self._drop(sock)

    def _clog(self) -> None:
        self._clogged = True
        for sock in self._pairs:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)

    def _finish(self) -> None:
        self._cut()
        self._closed = True

    def _drop(self, sock: socket.socket) -> None:
        other = self._pairs.pop(sock, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()
        if other is not None:
            self._drop(other)

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=1)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs[client], self._pairs[server] = server, client
        if not self._clogged:
            self._selector.register(client, selectors.EVENT_READ)
            self._selector.register(server, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    self._wake.recv(64)
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                    self._forward(key.fileobj)
            while self._orders:
                self._orders.pop(0)()
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 16)
            if data:
                self.carried += len(data)
                self._pairs[sock].sendall(data)
                return
        except OSError:
            pass
        self._drop(sock)
