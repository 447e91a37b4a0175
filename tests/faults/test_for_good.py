"""Faults that need a host or a lab of their own: hosts that die for good, and live-restore."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import put
from tests.e2e.containers import DRIVER, Container, eventually, removed
from tests.faults.checker import FORGOTTEN, GRACE, ended
from tests.faults.facts import HostFacts, host_facts, processes, read
from tests.faults.scene import PairMeter, Scene, plugin_answers, until
from tests.lab import Host, Lab

pytestmark = [pytest.mark.lab, pytest.mark.faults, pytest.mark.timeout(600)]
RESTORING = ["--live-restore"]


def rows_to(host: HostFacts, vtep: str) -> bool:
    return any(vtep in row for space in host.spaces.values() for row in space.fdb)


def test_a_host_dies_for_good(stage: Scene, built: Path) -> None:
    """The living lose nothing; rows of the dead stay for the grace, and go after it."""
    lab = stage.lab
    doomed = lab.add_host("28.5")
    put(doomed, built)
    lab.join(doomed)
    lab.wait_ready()
    eventually(lambda: stage.ground.run(doomed, stage.network), 30)
    stage.checker.right_within(10)
    stage.ground.containers[:] = [c for c in stage.ground.containers if c.host is not doomed]
    meter = stage.meter(lab.host("h2"), lab.host("h4"))
    try:
        lab.remove_host(doomed)
        died = time.monotonic()
        stage.expected.vanished[doomed.address] = died
        time.sleep(20)
        assert all(rows_to(host, doomed.address) for host in read(lab).hosts), "rows went before the grace"
        assert stage.checker.look() == []
        gone = until(
            lambda: not any(rows_to(host, doomed.address) for host in read(lab).hosts), "rows go", GRACE
        )
        stage.checker.right_within(5)
        print(f"rows gone {20 + gone:.1f} s after the host died")
        reading = meter.stop()
        assert reading.whole, reading
    finally:
        meter.abandon()
        stage.ground.manager.docker("node", "rm", "-f", doomed.name, check=False)


def started_in(stage: Scene, host: Host, network: str) -> float:
    return until(lambda: stage.ground.run(host, network), f"a container starts on {network}", 60)


def test_the_leader_dies_for_good(stage: Scene) -> None:
    """Another manager leads, the store is there again, and what is new is known to everybody.

    The engines' own share is seen beside it: how long a container of the built-in overlay takes to start.
    """
    dead = stage.leader
    built_in = stage.ground.network(driver="overlay")
    alive = [host for host in stage.lab.hosts if host is not dead]
    meter = stage.meter(alive[0], alive[-1])
    try:
        del stage.anchors[dead.name]
        stage.ground.containers[:] = stage.anchors.values()
        stage.expected.vanished[dead.address] = time.monotonic()
        stage.lab.remove_host(dead)
        until(lambda: stage.leader in alive, "another manager leads", 60)
        with ThreadPoolExecutor() as pool:
            started = list(pool.map(lambda net: started_in(stage, alive[-1], net), (stage.network, built_in)))
        known = stage.checker.right_within(5)
        print(
            f"with a leader there, a container started after {started[0]:.1f} s (built-in overlay"
            f" {started[1]:.1f} s) and was known everywhere {known:.1f} s after both had"
        )
        reading = meter.stop()
        assert reading.whole, reading
    finally:
        meter.abandon()
        stage.notes["spent"] = "a manager is gone"


def test_a_node_that_comes_back_while_the_old_leaders_engine_is_away(stage: Scene) -> None:
    """It finds the store that all the others have: with two, they would forget it after the grace."""
    old = stage.leader
    stage.notes["spent"] = "a manager's engine was killed"
    old.stop_engine(kill=True)
    until(lambda: stage.leader is not old, "another manager leads", 60)
    until(lambda: processes(stage.leader, "etcd --name=leader"), "its store runs")
    until(lambda: not processes(old, "etcd --name=leader"), "the old store is gone", 10)
    stage.lab.cut(stage.worker)
    time.sleep(6)
    stage.lab.heal(stage.worker)
    time.sleep(2)
    other = next(host for host in stage.lab.hosts[:3] if host not in (old, stage.leader))
    meter = stage.meter(other, stage.worker)
    try:
        time.sleep(GRACE)
        reading = meter.stop()
        assert reading.whole, reading
    finally:
        meter.abandon()


def test_a_network_that_a_killed_engine_has_forgotten_is_forgotten(stage: Scene) -> None:
    """Its container went with the engine, and it was removed elsewhere: nobody says DeleteNetwork here."""
    host, ground = stage.worker, stage.ground
    network = ground.network()
    lost = ground.run(host, network)
    host.stop_engine(kill=True)
    host.start_engine()
    until(lambda: plugin_answers(host), "the plugin answers")
    lost.remove()
    ground.containers.remove(lost)
    eventually(lambda: removed(ground.manager, network), 30)
    ground.networks.remove(network)
    assert ended(host_facts(host, host.address)), "nothing was lost: this test shows nothing"
    gone = until(lambda: not ended(host_facts(host, host.address)), "its record goes", FORGOTTEN)
    print(f"forgotten after {gone:.0f} s")
    stage.checker.right_within(10)


@pytest.fixture(params=["28.5", "20.10"])
def restoring(built: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A stand-alone engine that leaves its containers running when it ends."""
    with Lab(engines=[request.param]) as lab:
        (host,) = lab.hosts
        host.stop_engine()
        host.start_engine(options=RESTORING)
        put(host, built)
        yield host


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_live_restore(restoring: Host, kill: bool) -> None:
    """Running containers lose nothing while their engine is away and after; new ones join them."""
    host = restoring
    host.docker("network", "create", "-d", DRIVER, "--subnet", "10.230.0.0/24", "solo")
    one, two = (Container(host, name) for name in ("one", "two"))
    for container in (one, two):
        host.docker("run", "-d", "--name", container.name, "--network", "solo", "busybox", "sleep", "86400")
    meter = PairMeter(one, two, "solo")
    try:
        time.sleep(0.5)
        host.stop_engine(kill=kill)
        time.sleep(2)
        host.start_engine(options=RESTORING)
        until(lambda: plugin_answers(host), "the plugin answers")
        host.docker("run", "-d", "--name", "three", "--network", "solo", "busybox", "sleep", "86400")
        assert Container(host, "three").pings("one")
        assert two.pings(Container(host, "three").address("solo"))
        reading = meter.stop()
        assert reading.whole, reading
    finally:
        meter.abandon()
