"""Virtual addresses through faults: no request fails, and what changed meanwhile is known afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.containers import eventually
from tests.e2e.web import RATE, WEB, Web, load
from tests.faults.faults import FAULTS, Fault, Traffic
from tests.faults.idle import Idle
from tests.faults.scene import Scene
from tests.lab import Host

CHOSEN = (
    "plugin killed",
    "worker killed",
    "plugin disabled and enabled",
    "plugin upgraded",
    "host's control planes cut for 70 s",
    "etcd killed",
    "etcd hangs for 5 s",
    "Swarm leader's engine killed",
    "two managers of three lost and back",
    "more than half of the nodes silent",
)


@pytest.mark.lab
@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in CHOSEN], ids=lambda f: f.name)
def test_requests_go_on(stage: Scene, fault: Fault) -> None:
    """From a host that the fault is not done to, and from the one that it is, while that has a wire."""
    hurt = fault.hosts(stage)
    whole = [host for host in stage.lab.hosts if host not in hurt]
    asking = [whole[0], hurt[0]] if fault.traffic is Traffic.WHOLE else whole[:1]
    with served(stage, whole) as web:
        with ExitStack() as stack:
            loads = [stack.enter_context(load(stage.anchors[host.name], web.vip)) for host in asking]
            time.sleep(0.5)
            fault.do(stage)
            if fault.churn:
                one_more(stage, web)
            time.sleep(fault.lasts)
            fault.undo(stage)
            stage.checker.right_within(fault.bound)
            web.wait(4 if fault.churn else 3)
        for host, seen in zip(asking, loads, strict=True):
            print(f"{fault.name}, from {host.name}: {seen}")
            assert not seen.failures, seen
            assert seen.rate > 0.8 * RATE, seen


@contextmanager
def served(stage: Scene, places: list[Host]) -> Iterator[Web]:
    """Have a service of three tasks on *places* alone; all anchors are its clients."""
    ground, names = stage.ground, {host.name for host in places}
    elsewhere = [host.name for host in stage.lab.hosts if host.name not in names]
    constraints = [word for name in elsewhere for word in ("--constraint", f"node.hostname!={name}")]
    service = ground.service(stage.network, 3, *constraints, command=WEB)
    web = Web(ground, stage.network, service, list(stage.anchors.values()))
    web.wait(3)
    yield web
    ground.manager.docker("service", "rm", service)
    ground.services.remove(service)
    ground.wait_tasks(service, 0)
    stage.checker.right_within(10)


def one_more(stage: Scene, web: Web) -> None:
    """Scale by a manager that runs, once there is a leader."""

    def scaled() -> bool:
        manager = next(host for host in stage.lab.hosts[:3] if host.engine_running)
        manager.docker("service", "scale", "-d", f"{web.service}=4", timeout=10)
        return True

    assert eventually(scaled, 60)


@pytest.mark.kernel
@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_connection_that_idles_for_twenty_minutes(idle: Idle) -> None:
    """Opened when the suite began; the built-in's load balancer forgets such a one after 15."""
    time.sleep(max(0.0, idle.since + 20 * 60 - time.monotonic()))
    idle.check()
