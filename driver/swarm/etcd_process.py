"""The etcd that a Swarm leader runs for all nodes: a child process with an empty, temporary store.

Nothing in it needs to outlive it, since every node writes its own records again. So it has one
member, no fsync, and no peers: its peer address is a Unix socket in its private folder.
Clients and server authenticate with the Swarm's certificates, which Go reads as they are.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import requests

from driver.cluster.etcd.tls import Credentials, TlsSessions
from driver.wish.errors import StoreUnavailable
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_PEER: Final = "unix://peer:0"
"""A socket named ``peer:0`` in the working folder (etcd wants a port even there)."""
_EXEC: Final = 'test "$PPID" = "$1" && shift && exec "$@"'
"""Runs once the kernel is set to kill us with our parent: after losing it earlier, etcd must not start."""
_STOP_SECONDS: Final = 2.0
_HEALTH_SECONDS: Final = 1.0
_QUOTA: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """What one etcd server is started with."""

    binary: str
    folder: Path
    """Private to the server: emptied at every start, removed when it stops."""
    port: int
    credentials: Credentials


class EtcdProcess:
    """One run of the child process. For one thread."""

    def __init__(self, settings: EtcdSettings, address: str) -> None:
        self._settings = settings
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._relay: Supervised | None = None
        self._sessions = TlsSessions(settings.credentials)
        self._version: object = None
        self._session: requests.Session | None = None
        self._root = _content(settings.credentials.ca)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """The thread that copies its log into ours, while it runs."""
        return (self._relay,) if self._relay is not None else ()

    @property
    def url(self) -> str:
        """The address at which the other nodes reach it."""
        return f"https://{bracket(self.address)}:{self._settings.port}"

    def start(self) -> None:
        """Start it; raise StoreUnavailable with the remedy when that cannot work.

        The thread that calls this must outlive the server: the kernel ends the child with it.
        """
        settings = self._settings
        _check_port(settings.port, self._family())
        self._renew()
        command = self._command()
        shutil.rmtree(settings.folder, ignore_errors=True)
        try:
            settings.folder.mkdir(mode=0o700, parents=True)
            self._process = subprocess.Popen(
                command,
                cwd=settings.folder,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},  # etcd would read ETCD_… variables as settings
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise StoreUnavailable(f"etcd cannot be started: {error}") from None
        self._relay = _started_relay(self._process.stderr)

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def healthy(self) -> bool:
        """Tell whether it serves: asked over its own port, as a client would."""
        try:
            return _is_healthy(self._renew(), loopback(self.address), self._settings.port)
        except StoreUnavailable:
            return False

    def outdated(self) -> bool:
        """Tell whether the root certificate was replaced: etcd rereads the others, but not that one."""
        return _content(self._settings.credentials.ca) not in (self._root, b"")

    def wait_healthy(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it serves; return False when it died, time ran out, or *stopped* says so."""
        deadline = time.monotonic() + seconds
        while self.alive() and not stopped() and time.monotonic() < deadline:
            if self.healthy():
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End it, whatever state it is in, and remove what it wrote."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._relay is not None:
            self._relay.join(_STOP_SECONDS)
        if self._session is not None:
            self._session.close()
        self._process = self._relay = self._session = None
        shutil.rmtree(self._settings.folder, ignore_errors=True)

    def _renew(self) -> requests.Session:
        """Return a session with the present certificates."""
        version = self._sessions.version()
        if self._session is None or version != self._version:
            if self._session is not None:
                self._session.close()
            self._session, self._version = self._sessions.session(), version
        return self._session

    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def _command(self) -> list[str]:
        """Return a command whose process ends with ours: one member, no peers, no fsync, quiet."""
        settings, credentials = self._settings, self._settings.credentials
        listen = "[::]" if self._family() is socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - mutual TLS guards it
        options = {
            "name": "leader",
            "data-dir": "data",
            "listen-client-urls": f"https://{listen}:{settings.port}",
            "advertise-client-urls": self.url,
            "listen-peer-urls": _PEER,
            "initial-advertise-peer-urls": _PEER,
            "initial-cluster": f"leader={_PEER}",
            "initial-cluster-token": uuid.uuid4().hex,  # makes the cluster id, which marks a store as new
            "cert-file": str(credentials.certificate),
            "key-file": str(credentials.key),
            "trusted-ca-file": str(credentials.ca),
            "client-cert-auth": "true",
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "10m",
            "quota-backend-bytes": str(_QUOTA),
            "heartbeat-interval": "100",
            "election-timeout": "500",  # the one member elects itself only after this
            "unsafe-no-fsync": "true",
            "logger": "zap",
            "log-level": "error",  # at lower levels the gateway logs every single request
        }
        return [
            *("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _EXEC, "sh", str(os.getpid())),
            _find(settings.binary),
            *(f"--{name}={value}" for name, value in options.items()),
        ]


def serves(sessions: TlsSessions, host: str, port: int) -> bool:
    """Tell whether a store answers under an address, as a client would see it."""
    try:
        with sessions.session() as session:
            return _is_healthy(session, host, port)
    except StoreUnavailable:
        return False


def _is_healthy(session: requests.Session, host: str, port: int) -> bool:
    try:
        answer = session.get(f"https://{bracket(host)}:{port}/health", timeout=_HEALTH_SECONDS).json()
    except (requests.RequestException, ValueError):
        return False
    return isinstance(answer, dict) and answer.get("health") == "true"


def loopback(address: str) -> str:
    """Return where a host that is known as *address* reaches its own store."""
    return "::1" if ":" in address else "127.0.0.1"


def bracket(host: str) -> str:
    """Return *host* as URLs write it."""
    return f"[{host}]" if ":" in host else host


def _find(binary: str) -> str:
    path = shutil.which(binary)
    if path is None:
        raise StoreUnavailable(
            f"{binary} was not found: install etcd 3.5 on this host, or set PYOVERLAY_STORE to a store of"
            " your own"
        )
    return path


def _check_port(port: int, family: socket.AddressFamily) -> None:
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise StoreUnavailable(
                f"port {port} for the Swarm's store is not available on this host ({error.strerror}): free"
                " it, or set PYOVERLAY_STORE_PORT to another one, the same on all nodes"
            ) from None


def _content(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


def _started_relay(stream: IO[bytes] | None) -> Supervised:
    relay = _relay(stream)
    try:
        relay.start()
    except RuntimeError as error:  # no more threads can be had
        if stream is not None:
            stream.close()
        raise StoreUnavailable(f"etcd's log cannot be read: {error}") from None
    return relay


def _relay(stream: IO[bytes] | None) -> Supervised:
    """Return a thread that copies etcd's log into ours, and ends with it."""

    def turn() -> float:
        with suppress(ValueError, OSError):
            for line in stream or ():
                level, message = _parse(line)
                log.log(level, "etcd: %s", message)
        if stream is not None:
            stream.close()
        relay.end()
        return 0.0

    relay = Supervised("etcd-log", turn)
    return relay


def _parse(line: bytes) -> tuple[int, str]:
    text = line.decode(errors="replace").strip()
    try:
        fields = json.loads(text)
        message = str(fields.pop("msg"))
        level = logging.getLevelNamesMapping().get(str(fields.pop("level")).upper(), logging.ERROR)
    except (ValueError, KeyError, AttributeError, TypeError):
        return logging.WARNING, text
    rest = ", ".join(f"{name}={value}" for name, value in fields.items() if name not in ("ts", "caller"))
    return min(level, logging.ERROR), f"{message} ({rest})" if rest else message
