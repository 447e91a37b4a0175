"""HOST is reconciled like a network: wished, made, mended, withdrawn; by a kind that the product has not."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from driver.kernel.objects import KernelObject
from driver.reconcile.networks import NetworkReconciler
from driver.wish.model import Host
from driver.wish.state import State
from driver.wish.values import HOST, Address, NodeId
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel
from tests.kinds import Marker
from tests.unit.test_overlay import UNDERLAY, _soon

VTEP, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.9")
MTUS: dict[Address | None, int] = {VTEP: 1400, OTHER: 1500}


def of_host(state: State) -> Collection[KernelObject]:
    """A marker while the host has a VTEP address."""
    return [Marker("pyomark0", MTUS[state.host.vtep])] if state.host.vtep else ()


class Ground:
    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.wish = Wish(MemoryDisk(State(Host(NodeId("node1"), VTEP))))
        self.reconciler = NetworkReconciler(self.wish, self.kernel, audit_interval=3600)

    def is_there(self, mtu: int | None) -> bool:
        """Look without reading: what a read shows is no news any more."""
        return self.kernel.of(HOST, Marker.kind) == ([] if mtu is None else [Marker("pyomark0", mtu)])

    def move(self, vtep: Address | None) -> None:
        self.wish.change(lambda state: replace(state, host=replace(state.host, vtep=vtep)))


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setattr("driver.reconcile.desired.of_host", of_host)
    made = Ground()
    made.kernel.underlays = {VTEP: UNDERLAY, OTHER: UNDERLAY, None: UNDERLAY}
    made.reconciler.start()
    yield made
    made.reconciler.stop()


def test_what_is_wished_for_the_host_follows_the_wish(ground: Ground) -> None:
    assert _soon(lambda: ground.is_there(1400))
    ground.move(OTHER)
    assert _soon(lambda: ground.is_there(1500))
    ground.move(None)
    assert _soon(lambda: ground.is_there(None))


def test_what_is_changed_behind_our_back_is_mended_and_told(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert _soon(lambda: ground.is_there(1400))
    ground.kernel.spoil(Marker("pyomark0", 1300))
    assert _soon(lambda: ground.is_there(1400))
    assert _soon(lambda: "the host: repaired: marker pyomark0: mtu was 1300" in caplog.text)


def test_what_the_kernel_refuses_is_tried_again(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert _soon(lambda: ground.is_there(1400))
    ground.kernel.fail_next(Marker.kind, errno.ENOMEM, times=2)
    ground.move(OTHER)
    assert _soon(lambda: ground.is_there(1500))
    assert "the host: marker pyomark0" in caplog.text
