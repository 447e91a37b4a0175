"""Objects in the host's own namespace, by a kind that the product has not: tests/kinds.py."""

from __future__ import annotations

import pytest

from driver.kernel.kinds import KINDS
from driver.kernel.objects import index
from driver.reconcile.plan import diff
from driver.wish.values import HOST
from tests.fakes.kernel import FakeKernel
from tests.kernel.hosts import Host
from tests.kernel.samples import NS, network
from tests.kinds import Marker

pytestmark = pytest.mark.kernel

ONE, TWO = Marker("pyomark0", 1400), Marker("pyomark1", 1500)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driver.kernel.host.KINDS", (*KINDS, Marker))


@pytest.mark.usefixtures("known")
def test_they_are_made_read_mended_and_deleted(host: Host) -> None:
    want = index([ONE, TWO])
    assert host.kernel.apply(diff(want, host.kernel.read_place(HOST))) == {}
    assert host.kernel.read_place(HOST) == want
    host.run("ip link set pyomark0 mtu 1300")
    host.run("ip link set pyomark1 down")
    assert len(diff(want, host.kernel.read_place(HOST))) == 2
    assert host.kernel.apply(diff(want, host.kernel.read_place(HOST))) == {}
    assert host.kernel.read_place(HOST) == want
    few = index([ONE])
    assert host.kernel.apply(diff(few, host.kernel.read_place(HOST))) == {}
    assert host.kernel.read_place(HOST) == few


@pytest.mark.usefixtures("known")
def test_networks_and_strangers_are_not_the_hosts(host: Host) -> None:
    host.run("ip link add pyomark9 type bridge")
    host.kernel.apply(diff({**network(), ONE.key: ONE}, {}))
    assert host.kernel.read_place(HOST) == index([ONE]), "not a stranger's bridge, nor a container end"
    assert host.kernel.read_place(NS) == network()


def test_without_such_a_kind_nothing_is_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driver.kernel.host.links.links", pytest.fail)
    assert host.kernel.read_place(HOST) == {}


def test_the_kernel_in_memory_keeps_the_same_rules() -> None:
    kernel = FakeKernel()
    want = {**network(), ONE.key: ONE}
    assert kernel.apply(diff(want, {})) == {}
    assert kernel.read_place(HOST) == index([ONE])
    assert kernel.read_place(NS) == network()
