"""Namespaces that no network of the wish claims: what containers use stays, and lost records come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from driver.kernel.host import NetlinkKernel
from driver.kernel.names import container_name, namespace_name
from driver.reconcile.networks import NetworkReconciler
from driver.wish.model import Host as HostState
from driver.wish.model import Subnet
from driver.wish.remains import Told, recovered
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.kernel.hosts import Host, eventually
from tests.kernel.machine import Meter, endpoint_id, pair, running

pytestmark = pytest.mark.kernel

NETWORK = NetworkId("livedinnetwork")
NAME = namespace_name(NETWORK)


@contextmanager
def stranger(host: Host) -> Iterator[Callable[[], int]]:
    """A reconciler on *host* that knows no network, as if its state was lost; counts its audits."""
    kernel = host.inside(lambda: NetlinkKernel(host.directory))
    wish = Wish(MemoryDisk(State(HostState(NodeId("other"), ip_address("192.0.2.1")))))
    reconciler = NetworkReconciler(wish, kernel, audit_interval=0.1)
    looks: list[None] = []
    look = reconciler._take_on_orphans

    def counted() -> None:
        look()
        looks.append(None)

    reconciler._take_on_orphans = counted  # type: ignore[method-assign]
    reconciler.start()
    try:
        yield lambda: len(looks)
    finally:
        reconciler.stop()


def test_what_containers_use_stays_until_they_end(
    hosts: Callable[[], Host], caplog: pytest.LogCaptureFixture
) -> None:
    """Not one packet is lost, and the log says once why it stays."""
    a, b = machines = pair([hosts(), hosts()])
    try:
        for machine in machines:
            machine.create(NETWORK, "10.1.0.0/24", 7001)
        first = a.attach(NETWORK, "10.1.0.11")
        second = a.attach(NETWORK, "10.1.0.12")
        b.attach(NETWORK, "10.1.0.21")
        with Meter(first, "10.1.0.21") as far, Meter(second, "10.1.0.11") as near:
            assert eventually(lambda: len(far.sent) > 50)
            with stranger(a.host) as audits:
                assert eventually(lambda: audits() > 10)
                before = len(far.sent), len(near.sent)
                assert eventually(
                    lambda: len(far.sent) > before[0] + 100 and len(near.sent) > before[1] + 100
                )
        assert (far.lost, near.lost) == (0, 0)
        assert len([m for m in caplog.messages if "but stays: containers use it" in m]) == 1
    finally:
        for machine in machines:
            machine.stop()  # its containers end, and nobody tells the other reconciler
    assert (a.host.directory / NAME).exists()
    with stranger(a.host):
        assert eventually(lambda: not (a.host.directory / NAME).exists())


def test_a_port_that_no_container_has_keeps_nothing(hosts: Callable[[], Host]) -> None:
    """The container end of a Join that was never completed is still in the host's namespace."""
    with running([hosts(), hosts()]) as (a, _):
        a.create(NETWORK, "10.1.0.0/24", 7001)
        container = a.attach(NETWORK, "10.1.0.11")
        end = container_name(EndpointId(endpoint_id(NETWORK, "10.1.0.11")))
        container.run(f"ip link set eth0 down; ip link set eth0 netns {a.host.path} name {end}")
    with stranger(a.host):
        assert eventually(lambda: not (a.host.directory / NAME).exists())


def test_lost_records_come_back_without_a_packet_lost(hosts: Callable[[], Host]) -> None:
    """The real kernel's marks are enough; a container that starts afterwards reaches the others."""
    with running([hosts(), hosts()]) as (a, b):
        for machine in (a, b):
            machine.create(NETWORK, "10.1.0.0/24", 7001)
        near = a.attach(NETWORK, "10.1.0.11", mac=Mac("02:42:00:00:00:99"))
        b.attach(NETWORK, "10.1.0.21")
        endpoint = a.wish.state.endpoints[EndpointId(endpoint_id(NETWORK, "10.1.0.11"))]
        with Meter(near, "10.1.0.21") as meter:
            assert eventually(lambda: len(meter.sent) > 50)
            a.lose_records()
            told = Told(
                NETWORK, [Subnet(ip_network("10.1.0.0/24"))], {}, False, True, {endpoint.id: endpoint.mac}
            )
            remains = a.reconciler.remains[NETWORK]
            a.wish.change(lambda state: recovered(state, told, remains, 4789, 0.0))
            a.start_others()
            far = a.attach(NETWORK, "10.1.0.12")
            before = len(meter.sent)
            assert eventually(lambda: len(meter.sent) > before + 200)
        assert meter.lost == 0
        assert a.wish.state.endpoints[endpoint.id] == replace(endpoint, sandbox="", claimed=0)
        with Meter(far, "10.1.0.21") as meter:
            assert eventually(lambda: len(meter.sent) > 50)
        assert meter.lost == 0
