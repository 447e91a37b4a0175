"""A real process to talk to, on stand-in services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.contract.engine import accept
from tests.contract.samples import sample

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


class Server:
    """A process of `tests.contract.stub`; its output is in *log*, or goes to the descriptor *output*."""

    def __init__(self, folder: Path, *prefix: str, output: int | None = None) -> None:
        self.prefix = prefix
        self.output = output
        self.socket = folder / "pyoverlay.sock"
        self.log = folder / "log"
        self.state_dir = folder
        self.started = time.monotonic()
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        settings = {
            "PYOVERLAY_SOCKET": str(self.socket),
            "PYOVERLAY_STATE_DIR": str(self.state_dir),
            "PYOVERLAY_LOG_LEVEL": "debug",
        }
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "tests.contract.stub"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=self.output or log,
                stderr=self.output or log,
            )

    def connect(self) -> socket.socket:
        """Connect; the socket closes itself in a `with` and never waits for more than ten seconds."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        try:
            client.connect(str(self.socket))
        except OSError:
            client.close()
            raise
        return client

    def call(self, method: str, body: bytes = b"", host: str = "plugin.moby.localhost") -> tuple[int, bytes]:
        """Call as Go's client does; return status and body."""
        with self.connect() as client:
            client.sendall(head(method, len(body), host) + body)
            return read(client)

    def oper_info(self) -> float:
        """Call the method that must always answer at once; return the seconds that it took."""
        started = time.monotonic()
        request = sample("NetworkDriver.EndpointOperInfo")
        method = "NetworkDriver.EndpointOperInfo"
        accept(method, request, *self.call(method, json.dumps(request).encode()))
        return time.monotonic() - started

    def worker(self) -> int:
        """The worker's process id."""
        return children(self.process.pid)[0]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Signal the arbiter and return the seconds until it was gone."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.monotonic() - started


def children(parent: int) -> list[int]:
    """The processes whose parent is *parent*, zombies included."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def head(method: str, length: int, host: str = "plugin.moby.localhost") -> bytes:
    """The engine's header, of which nothing is left out (see the recordings)."""
    return (
        f"POST /{method} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Go-http-client/1.1\r\n"
        f"Content-Length: {length}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n"
        "Accept-Encoding: gzip\r\n\r\n"
    ).encode()


def read(client: socket.socket) -> tuple[int, bytes]:
    """Read one answer up to the end of the connection, which must come at once."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        # Linux says so when we wrote more than was read; what was answered came first.
        while chunk := client.recv(65536):
            data += chunk
    lines, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in lines, data
    return int(lines.split()[1]), body


def eventually(attempt: Callable[[], T], seconds: float = 30) -> T:
    """Repeat *attempt* until it neither raises nor is false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := attempt():
                return result
        except (OSError, AssertionError, IndexError):
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def running(folder: Path, *prefix: str, output: int | None = None) -> Iterator[Server]:
    """A process, started under the command *prefix*, that ends with the context, killed if it must be."""
    server = Server(folder, *prefix, output=output)
    try:
        eventually(server.oper_info)
        yield server
    finally:
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(2)
        server.process.kill()
        server.process.wait()
