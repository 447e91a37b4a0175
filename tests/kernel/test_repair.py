"""The engine on the real kernel: what a hand changes is right soon, others lose nothing."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from driver.cluster.publication import publication
from driver.kernel.host import NetlinkKernel
from driver.kernel.names import namespace_name, port_name
from driver.kernel.objects import KernelState
from driver.reconcile.desired import desired
from driver.wish.model import Underlay
from driver.wish.values import EndpointId, NetworkId
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, Meter, Stream, datagrams, endpoint_id, running

pytestmark = pytest.mark.kernel

SPOILT, OTHER = "spoiltnetwork", "othernetwork"
WITHIN = 20.0


class Lab:
    """Two machines, each with two containers in one network and one in another."""

    def __init__(self, machines: list[Machine]) -> None:
        self.a, self.b = machines
        self.has_shortcuts = self.a.reconciler.shortcuts
        for machine in machines:
            machine.create(SPOILT, "10.1.0.0/24", 7001)
            machine.create(OTHER, "10.2.0.0/24", 7002)
        self.first = self.a.attach(SPOILT, "10.1.0.11")
        self.a.attach(SPOILT, "10.1.0.12")
        self.b.attach(SPOILT, "10.1.0.21")
        self.b.attach(SPOILT, "10.1.0.22")
        self.other = self.a.attach(OTHER, "10.2.0.11")
        self.b.attach(OTHER, "10.2.0.21")
        assert eventually(self.right)
        with Meter(self.first, "10.1.0.21") as meter, Meter(self.other, "10.2.0.21"):
            assert eventually(lambda: len(meter.sent) > 100 and not meter.outage)

    def right(self) -> bool:
        """Ask a kernel of our own, so that no question of ours drains the engine's news."""
        kernel = self.a.host.inside(lambda: NetlinkKernel(self.a.host.directory))
        try:
            return all(kernel.read_place(namespace_name(n)) == self.wish(n) for n in self.networks)
        finally:
            kernel.close()

    @property
    def networks(self) -> list[NetworkId]:
        return [NetworkId(SPOILT), NetworkId(OTHER)]

    def wish(self, network: NetworkId) -> KernelState:
        mtu = self.a.host.json("ip -j link show u0")[0]["mtu"]
        return desired(self.a.wish.state, network, Underlay("u0", mtu), shortcuts=self.has_shortcuts)

    def space(self) -> Space:
        return self.a.host.overlay(namespace_name(NetworkId(SPOILT)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One for all tests: each leaves it right."""
    with ExitStack() as stack:
        hosts = [Host(tmp_path_factory.mktemp(name)) for name in ("a", "b")]
        for host in hosts:
            stack.callback(host.close)
        yield Lab(stack.enter_context(running(hosts)))


def idle_port() -> str:
    return port_name(EndpointId(endpoint_id(SPOILT, "10.1.0.12")))


#: None of these may cost the containers 10.1.0.11 and 10.1.0.21 of the same network a packet.
HARMLESS = [
    "bridge fdb del 02:42:0a:01:00:16 dev vx7001 self",
    "bridge fdb replace 02:42:0a:01:00:16 dev vx7001 dst 192.0.2.99 self permanent",
    "bridge fdb append 02:42:0a:01:00:77 dev vx7001 dst 192.0.2.99 self permanent",
    "bridge fdb del 00:00:00:00:00:00 dev vx7001 self",
    "bridge fdb append 00:00:00:00:00:00 dev vx7001 dst 192.0.2.2 vni 5 self permanent",
    "ip neigh del 10.1.0.22 dev vx7001",
    "ip neigh replace 10.1.0.22 lladdr 02:00:00:00:00:05 dev vx7001 nud permanent",
    "ip link set PORT nomaster",
    "ip link set PORT mtu 1000",
    "ip link set PORT down",
    "ip link set PORT name stray",
    "ip link set PORT type bridge_slave isolated on",
    "ip address del 10.1.0.1/24 dev br7001",
    "ip link set br7001 mtu 1400",
    "ip link set vx7001 alias ''",
    "tc filter del dev vx7001 ingress",
    "umount -l PIN",
    "umount -l PIN && rm -f PIN || true",
]

#: These cut the network itself for a moment, and no other.
CUTTING = [
    "bridge fdb del 02:42:0a:01:00:15 dev vx7001 self",
    "ip link set vx7001 mtu 1000",
    "ip link set vx7001 down",
    "ip link set vx7001 nomaster",
    "ip link del vx7001",
    "ip link set br7001 down",
    "ip link del br7001",
    "ip link del br7001; ip link del vx7001",
    "tc qdisc del dev vx7001 clsact",
]


def spoil(lab: Lab, change: str) -> None:
    pin = str(lab.a.host.directory / namespace_name(NetworkId(SPOILT)))
    change = change.replace("PORT", idle_port()).replace("PIN", pin)
    if pin in change:
        subprocess.run(["sh", "-c", change], check=True)
    else:
        lab.space().run(change)


def repaired_in(lab: Lab, change: str) -> float:
    before = sum(lab.a.reconciler.repairs.values())
    spoil(lab, change)
    start = time.monotonic()
    while not (lab.right() and sum(lab.a.reconciler.repairs.values()) > before):
        assert time.monotonic() - start < WITHIN, change
    return time.monotonic() - start


@pytest.mark.parametrize("change", [*HARMLESS, *CUTTING])
def test_it_is_right_soon_and_others_lose_nothing(
    lab: Lab, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    if change.startswith("tc ") and not lab.has_shortcuts:
        pytest.skip("this kernel has no shortcuts")
    with Meter(lab.first, "10.1.0.21") as same, Meter(lab.other, "10.2.0.21") as other:
        time.sleep(0.1)
        repaired_in(lab, change)
        time.sleep(0.3)
    assert other.lost == 0
    assert same.lost == 0 or change in CUTTING
    assert same.outage < 15
    repaired = [r for r in caplog.records if "repaired" in r.getMessage()]
    assert len(repaired) <= 2
    assert all(r.levelno == logging.WARNING and SPOILT in r.getMessage() for r in repaired)


def test_all_at_once_and_again(lab: Lab) -> None:
    with Meter(lab.other, "10.2.0.21") as other:
        for change in (
            "ip link set PORT nomaster",
            "ip link del br7001; ip link del vx7001",
            "umount -l PIN",
        ):
            spoil(lab, change)
            time.sleep(0.1)
        start = time.monotonic()
        assert eventually(lab.right)
        assert time.monotonic() - start < WITHIN
    assert other.lost == 0


def test_the_underlays_mtu_is_lowered_under_a_tcp_stream_and_full_sized_datagrams(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is stuck: who cannot be told has its packets fragmented."""
    there, back = lab.b.containers[0], lab.b.containers[1]
    with Meter(lab.first, "10.1.0.21") as same, Stream(lab.first, there, "10.1.0.21") as stream:
        assert stream.flows()
        for machine in (lab.a, lab.b):
            machine.host.run("ip link set u0 mtu 1400")
        assert eventually(lab.right)
        (bridge,) = lab.space().json("ip -j link show br7001")
        assert bridge["mtu"] == 1350
        assert stream.flows()
    assert same.lost == 0
    assert datagrams(back, lab.first, "10.1.0.11", 1422)[1:] == [True] * 4
    assert datagrams(there, lab.first, "10.1.0.11", 1422, df=False) == [True] * 5
    (newcomer,) = lab.a.attach(SPOILT, "10.1.0.13").json("ip -j link show eth0")
    assert newcomer["mtu"] == 1350
    for machine in (lab.a, lab.b):
        machine.host.run("ip link set u0 mtu 1500")
    assert eventually(lab.right)
    assert datagrams(lab.first, back, "10.1.0.22", 1422) == [True] * 5
    assert caplog.text.count("changed from 1500 to 1400") == 2
    assert "repaired" not in caplog.text


def test_a_vtep_address_that_is_away_for_a_while_tears_nothing_down(lab: Lab) -> None:
    (before,) = lab.space().json("ip -j link show vx7001")
    lab.a.host.run("ip address del 192.0.2.1/24 dev u0")
    time.sleep(0.2)
    assert lab.right()
    lab.a.host.run("ip address add 192.0.2.1/24 dev u0")
    assert eventually(lab.right)
    (after,) = lab.space().json("ip -j link show vx7001")
    assert after["ifindex"] == before["ifindex"]
    with Meter(lab.first, "10.1.0.21") as same:
        time.sleep(0.2)
    assert same.lost == 0


def test_a_container_that_died_unseen_is_withdrawn(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("driver.reconcile.networks._WITHDRAW_AFTER", 0.5)
    lab.a.containers[1].close()
    lab.a.containers.pop(1)
    left = {ip_address("10.1.0.11"), ip_address("10.1.0.13"), ip_address("10.2.0.11")}
    assert eventually(lambda: {r.address for r in publication(lab.a.wish.state).endpoints} == left)
    assert eventually(lambda: caplog.text.count("has lost its container") == 1)
    assert eventually(lambda: "10.1.0.12" not in str(lab.b.wish.state.peers.entries[NetworkId(SPOILT)]))
