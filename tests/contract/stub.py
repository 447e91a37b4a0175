"""A whole process on stand-in services: `python -m tests.contract.stub`, settings from the environment.

An endpoint whose id begins with "slow" takes seconds to join, one with "busy" computes for as long; to
discover 192.0.2.75 asks for a restart.
"""

from __future__ import annotations

import logging
import os
import time

from flask import Flask

from driver.overlay import Attachment
from driver.wish.errors import DiskError
from driver.wish.values import Address
from plugin import logs, server, settings
from plugin.app import create_app
from tests.contract.services import FakeAddresses, FakeNetworks

log = logging.getLogger("stub")

SLOW = 1.5


class _Networks(FakeNetworks):
    def __init__(self, restart: server.Restart) -> None:
        super().__init__()
        self._restart = restart

    def join(self, network: str, endpoint: str, sandbox: str) -> Attachment:
        log.info("joining %s", endpoint)
        if endpoint.startswith("slow"):
            time.sleep(SLOW)
        end = time.monotonic() + SLOW
        while endpoint.startswith("busy") and time.monotonic() < end:
            pass
        if endpoint.startswith("stuck"):
            time.sleep(60)
        return super().join(network, endpoint, sandbox)

    def node_discovered(self, address: Address, *, is_self: bool) -> None:
        if str(address) == "192.0.2.75":
            self._restart("the test wants it")


class StubRuntime:
    def __init__(self, chosen: settings.Settings, restart: server.Restart) -> None:
        self._state_dir = chosen.state_dir
        self._restart = restart

    def start(self) -> Flask:
        if (self._state_dir / "damaged").exists():
            raise DiskError("state.json: it is damaged; move it away")
        log.info("runtime started in %d", os.getpid())
        return create_app(_Networks(self._restart), FakeAddresses())

    def stop(self) -> None:
        log.info("runtime stopped in %d", os.getpid())


if __name__ == "__main__":
    chosen = settings.load(os.environ)
    logs.set_up(chosen.log_level)
    server.serve(chosen, StubRuntime, preload=("plugin.app",))
