"""Many at once, on real engines: nothing is lost meanwhile and nothing is left over afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from plugin.server import THREADS
from tests.e2e.containers import DRIVER, eventually, playground
from tests.faults.leaks import Usage, all_usage, leaks, store_keys
from tests.faults.scene import Scene, until

pytestmark = [pytest.mark.lab, pytest.mark.faults, pytest.mark.timeout(900)]
EACH = 50
NETWORKS = 200
TOGETHER = 12


def test_fifty_containers_started_and_stopped_at_once_on_each_host(stage: Scene) -> None:
    ground, hosts = stage.ground, stage.lab.hosts
    with nothing_lost_and_nothing_left(stage):
        everybody = EACH * len(hosts)
        service = ground.service(
            stage.network, 0, "--endpoint-mode", "dnsrr", "--replicas-max-per-node", str(EACH)
        )
        ground.manager.docker("service", "scale", "-d", f"{service}={everybody}")
        assert eventually(lambda: len(ground.tasks(service)) == everybody, 400)
        took = stage.checker.right_within(120)
        print(f"{everybody} containers: right {took:.1f} s after the last one ran")
        ground.manager.docker("service", "rm", service)
        ground.services.remove(service)
        until(lambda: not ground.tasks(service), "all tasks end", 200)
        stage.checker.right_within(60)


def test_two_hundred_networks_created_used_and_removed(stage: Scene) -> None:
    host = stage.worker
    names = [f"many{number}" for number in range(NETWORKS)]
    with nothing_lost_and_nothing_left(stage):
        guest = stage.ground.run(host, stage.network)
        for name in names:
            stage.ground.manager.docker("network", "create", "-d", DRIVER, "--attachable", name)
            until(lambda n=name: connected(stage, guest.name, n), f"{guest.name} is in {name}")  # type: ignore[misc]
        stage.checker.right_within(10)
        for name in names:
            host.docker("network", "disconnect", name, guest.name)
            stage.ground.manager.docker("network", "rm", name)
        guest.remove()
        stage.ground.containers.remove(guest)
        stage.checker.right_within(30)


def test_containers_on_many_networks_come_back_with_their_engine(stage: Scene) -> None:
    """Engines before 29.6 that join several networks' gossip at once leave containers (ADR 13).

    One may be left: the engine's ingress network comes when it likes. Unpaced, nine of twelve were.
    """
    other, host = stage.lab.hosts[1], stage.worker
    with playground(stage.lab) as ground:
        networks = [ground.network() for _ in range(TOGETHER)]
        for network in networks:
            ground.run(other, network)
        guests = [ground.run(host, network, "--restart", "always") for network in networks]
        host.stop_engine()
        host.start_engine()
        left = [guest.name for guest in guests if guest.pid == "0"]
        print(f"{len(left)} of {len(guests)} containers left")
        assert len(left) <= 1
    stage.checker.right_within(60)


@contextmanager
def nothing_lost_and_nothing_left(stage: Scene) -> Iterator[None]:
    """Count packets between two hosts meanwhile, and resources before and after."""
    before, keys = all_usage(stage.lab), store_keys(stage.lab)
    meter = stage.meter(stage.lab.hosts[1], stage.lab.hosts[-1])
    try:
        yield
        reading = meter.stop()
    finally:
        meter.abandon()
    assert reading.whole, reading
    assert leaked(before, all_usage(stage.lab)) == []
    assert store_keys(stage.lab) == keys


def leaked(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> list[str]:
    """What has grown; the server's threads may, to THREADS: they stay for the next crowd."""
    return [text for text in leaks(before, after) if "threads" not in text] + [
        f"{name}: {usage.threads} threads"
        for name, usage in after.items()
        if usage.threads > before[name].threads + THREADS
    ]


def connected(stage: Scene, container: str, network: str) -> bool:
    done = stage.worker.run(["docker", "network", "connect", network, container], check=False)
    return done.returncode == 0
