"""Keeps one etcd server running for as long as it is wanted. For one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from driver.swarm.etcd_process import EtcdProcess, EtcdSettings
from driver.wish.errors import StoreUnavailable
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_READY_SECONDS: Final = 5.0
_HEALTH_SECONDS: Final = 5.0
_MAX_SICK: Final = 3
_MIN_PAUSE: Final = 0.5
_MAX_PAUSE: Final = 10.0
_STEADY_SECONDS: Final = 60.0


class Supervisor:
    """Starts, watches, restarts and stops the server; a failure is logged once and tried again."""

    def __init__(self, settings: EtcdSettings, stopped: Callable[[], bool]) -> None:
        self._settings = settings
        self._stopped = stopped
        self._server: EtcdProcess | None = None
        self._started_at = 0.0
        self._retry_at = 0.0
        self._pause = 0.0
        self._health_at = 0.0
        self._sick = 0
        self._complaint = ""

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """The server's threads, while there is one."""
        return self._server.threads if self._server is not None else ()

    @property
    def serving(self) -> bool:
        """Whether the server runs and has served."""
        return self._server is not None

    def keep_running(self, address: str) -> None:
        """Make it run under *address*: start it, or check that it is still healthy."""
        if self._server is not None:
            self._check(self._server, address)
        if self._server is None and time.monotonic() >= self._retry_at:
            self._start(address)

    def stop(self, reason: str) -> None:
        """Make sure that it does not run."""
        self._pause = self._retry_at = 0.0
        self._complaint = ""
        if self._server is not None:
            log.info("stopping the Swarm's store on this host: %s", reason)
            self._server.stop()
            self._server = None

    def keep(self) -> None:
        """Leave it as it is, but restart it if it died."""
        if self._server is not None:
            self.keep_running(self._server.address)

    def _start(self, address: str) -> None:
        """Start a server and see it serve; one that does not is stopped, and the reason said."""
        server = EtcdProcess(self._settings, address)
        began = time.monotonic()
        try:
            server.start()
            if not server.wait_healthy(_READY_SECONDS, self._stopped):
                raise StoreUnavailable("the Swarm's store did not start: see etcd's messages above")
        except StoreUnavailable as error:
            server.stop()
            self._failed(str(error))
            return
        log.info(
            "the Swarm's store is running on this host: %s, after %.2f s",
            server.url,
            time.monotonic() - began,
        )
        self._server, self._complaint, self._sick = server, "", 0
        self._started_at = time.monotonic()
        self._health_at = self._started_at + _HEALTH_SECONDS

    def _check(self, server: EtcdProcess, address: str) -> None:
        reason = self._fault(server, address)
        if reason:
            server.stop()
            self._server = None
            if time.monotonic() - self._started_at > _STEADY_SECONDS:
                self._pause = 0.0
            self._failed(f"restarting the Swarm's store on this host: {reason}")

    def _fault(self, server: EtcdProcess, address: str) -> str:
        """Return why the server must be restarted, or nothing."""
        if not server.alive():
            return "etcd has died"
        if address != server.address:
            return f"this node's address is now {address}"
        if server.outdated():
            return "the Swarm has a new root certificate"
        if time.monotonic() >= self._health_at:
            self._health_at = time.monotonic() + _HEALTH_SECONDS
            self._sick = 0 if server.healthy() else self._sick + 1
        return "etcd does not answer" if self._sick >= _MAX_SICK else ""

    def _failed(self, reason: str) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(_MAX_PAUSE, max(_MIN_PAUSE, 2 * self._pause))
        if reason != self._complaint and not self._stopped():
            self._complaint = reason
            log.error("%s", reason)
