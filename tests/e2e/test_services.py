"""Swarm services: every task reaches every task, through scaling, draining and updating."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.containers import Container, Playground, eventually


def assert_mesh(tasks: list[Container], network: str) -> None:
    addresses = {task.address(network) for task in tasks}
    assert len(addresses) == len(tasks)
    for task in tasks:
        for address in addresses:
            assert task.pings(address), f"{task} does not reach {address}"


@contextmanager
def drained(ground: Playground, name: str) -> Iterator[None]:
    ground.manager.docker("node", "update", "--availability", "drain", name)
    try:
        yield
    finally:
        ground.manager.docker("node", "update", "--availability", "active", name)


def test_a_service_in_dnsrr_mode_through_its_life(ground: Playground) -> None:
    network = ground.network()
    service = ground.service(network, 6, "--endpoint-mode", "dnsrr")
    tasks = ground.wait_tasks(service, 6)
    assert {task.host.name for task in tasks} == {host.name for host in ground.lab.hosts}
    assert_mesh(tasks, network)
    names = {task.address(network) for task in tasks}
    for task in tasks[:3]:
        assert eventually(lambda t=task: t.resolves(service) == names), f"{task.resolves(service)} != {names}"  # type: ignore[misc]

    for replicas in (2, 8):
        ground.manager.docker("service", "scale", "-d", f"{service}={replicas}")
        tasks = ground.wait_tasks(service, replicas)
        assert_mesh(tasks[:4], network)
        now = {task.address(network) for task in tasks}
        assert eventually(lambda t=tasks[0], n=now: t.resolves(service) == n)  # type: ignore[misc]

    with drained(ground, "h3"):
        assert eventually(lambda: {t.host.name for t in ground.tasks(service)} == {"h1", "h2"}, 60)
        tasks = ground.wait_tasks(service, 8)
        assert_mesh(tasks[::2], network)

    before = {task.name for task in tasks}
    ground.manager.docker("service", "update", "-d", "--force", "--update-parallelism", "4", service)
    assert eventually(lambda: not before & {t.name for t in ground.tasks(service)}, 90)
    assert_mesh(ground.wait_tasks(service, 8)[::3], network)

    ground.manager.docker("service", "rm", service)
    assert eventually(lambda: not ground.tasks(service), 60)


def test_tasks_name_of_a_service_with_a_vip(ground: Playground) -> None:
    """tasks.<name> gives the tasks' own addresses; the virtual one is in test_vips.py."""
    network = ground.network()
    service = ground.service(network, 3)
    tasks = ground.wait_tasks(service, 3)
    client = ground.run(ground.lab.hosts[1], network)
    addresses = {task.address(network) for task in tasks}
    assert eventually(lambda: client.resolves(f"tasks.{service}") == addresses)
    assert all(client.pings(address) for address in addresses)


def test_an_endpoint_option_that_nobody_knows_is_named_in_service_ps(ground: Playground) -> None:
    network = ground.network()
    service = ground.service(f"name={network},driver-opt=color=blue", 1)
    said = eventually(lambda: _errors(ground, service), 30)
    assert "'color'" in said
    assert "'blue'" in said


def _errors(ground: Playground, service: str) -> str:
    return ground.manager.docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", service)
