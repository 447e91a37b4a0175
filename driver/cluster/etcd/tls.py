"""HTTP sessions to the store: TCP settings that notice a dead peer, and mutual TLS.

The key of a Swarm node carries header lines (``kek-version``, ``raft-dek``) that Go skips and
OpenSSL refuses. They are removed in memory: a private key of the engine's is never written
to a disk, nor to a path that another process could open.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import requests
from requests.adapters import HTTPAdapter

from driver.wish.errors import StoreUnavailable

#: The kernel notices a vanished peer within four seconds, without any traffic of
#: ours: probes after one idle second, and an end when nothing was acknowledged for that long.
_TCP_OPTIONS: Final[list[tuple[int, int, int | bytes]]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000),
    # For the opening of a watch, which has no time-out of requests': that could not be lifted again.
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 2, 0)),
]


class Sessions(Protocol):
    """Makes HTTP sessions, one per thread that needs one."""

    def version(self) -> object:
        """Return a value that changes with the credentials."""

    def session(self) -> requests.Session:
        """Return a new session; raise StoreUnavailable when the credentials cannot be used."""


class PlainSessions:
    """Sessions without credentials: plain HTTP, or HTTPS as the system's CAs vouch for it."""

    def version(self) -> object:
        """Never changes."""
        return None

    def session(self) -> requests.Session:
        """Return a new session."""
        return _session(_Adapter())


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the PEM files of one identity are, and which name the server must prove."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    """The name that the server's certificate must bear; None: the host of the URL."""
    remedy: str = "check the files named in the settings"
    """What the user can do, for the error message."""

    def files(self) -> list[Path]:
        """Return the files that must exist."""
        return [path for path in (self.ca, self.certificate, self.key) if path is not None]


class TlsSessions:
    """Sessions with mutual TLS; the files are read again for every session."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def version(self) -> object:
        """Return what changes when a file is replaced or written."""
        return tuple(_stamp(path) for path in self._credentials.files())

    def session(self) -> requests.Session:
        """Return a session that trusts only the one CA; raise StoreUnavailable when a file is unusable."""
        return _session(_Adapter(tls_context(self._credentials), self._credentials.server_name))


def tls_context(credentials: Credentials) -> ssl.SSLContext:
    """Build the client's side of mutual TLS; raise StoreUnavailable naming the file and the remedy."""
    ca = _read(credentials, credentials.ca)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=ca)
        if credentials.certificate is not None and credentials.key is not None:
            certificate = _read(credentials, credentials.certificate)
            key = _bare_key(credentials, credentials.key)
            with _memory_file(certificate) as certificate_path, _memory_file(key) as key_path:
                context.load_cert_chain(certificate_path, key_path, password="")
    except (ssl.SSLError, ValueError) as error:
        files = ", ".join(str(path) for path in credentials.files())
        raise StoreUnavailable(
            f"{files}: not usable as certificates ({error}): {credentials.remedy}"
        ) from None
    return context


def _read(credentials: Credentials, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a PEM file"
        raise StoreUnavailable(f"{path} cannot be read ({reason}): {credentials.remedy}") from None


def _bare_key(credentials: Credentials, path: Path) -> str:
    """Return the key without PEM headers (RFC 1421 section 4.4), which modern OpenSSL does not read."""
    text = _read(credentials, path)
    if "ENCRYPTED" in text:
        raise StoreUnavailable(f"{path} is encrypted: {credentials.remedy}")
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip() and ":" not in line)


@contextmanager
def _memory_file(text: str) -> Iterator[str]:
    """Provide *text* under a path that only this process can open."""
    descriptor = os.memfd_create("pyoverlay-pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _session(adapter: HTTPAdapter) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # the host's proxy and .netrc are not meant for the store
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "pyoverlay"})
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class _Adapter(HTTPAdapter):
    """Uses our TLS context alone: requests would add all public CAs to the ones it trusts."""

    def __init__(self, context: ssl.SSLContext | None = None, server_name: str | None = None) -> None:
        self._context = context
        self._server_name = server_name
        super().__init__(pool_connections=1, pool_maxsize=2, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Give every connection our TCP options, context and expected name."""
        kwargs["socket_options"] = _TCP_OPTIONS
        if self._context is not None:
            kwargs["ssl_context"] = self._context
            kwargs["assert_hostname"] = self._server_name
        super().init_poolmanager(*args, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave the connection's trust to the context, where there is one."""
        if self._context is None:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
