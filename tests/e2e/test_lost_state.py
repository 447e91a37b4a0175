"""The plugin's records are lost while containers run: they notice nothing, and new ones start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import put
from tests.e2e.containers import DRIVER, NOTHING, Container, Playground, eventually, ours
from tests.faults.facts import state_folder
from tests.lab import Host, Lab

NETWORK = "solo"
END_PINGS = 'for p in /proc/[0-9]*; do read n < $p/comm; [ "$n" = ping ] && kill -INT ${p#/proc/}; done; true'


def reinstall(host: Host, built: Path) -> None:
    """As an operator does who moves to another version by removing the old one."""
    host.docker("plugin", "disable", "-f", DRIVER)
    host.docker("plugin", "rm", "-f", DRIVER)
    put(host, built)


def empty(host: Host, _: Path) -> None:
    """As an operator does who sets damaged files aside."""
    host.docker("plugin", "disable", "-f", DRIVER)
    for name in ("state.json", "ipam.json"):
        (state_folder(host) / name).unlink(missing_ok=True)
    host.docker("plugin", "enable", DRIVER)


@contextmanager
def no_ping_lost(source: Container, target: str) -> Iterator[None]:
    """Twenty pings a second, meanwhile and for a while after, are all answered."""
    argv = ["docker", "exec", source.name, "ping", "-i", "0.05", "-W", "1", target]
    meter = source.host.popen(argv, stdout=-1, text=True)
    try:
        time.sleep(0.5)
        yield
        time.sleep(1)
    finally:
        source.exec("sh", "-c", END_PINGS)
        shown = meter.communicate(timeout=30)[0]
    assert " 0% packet loss" in shown, shown


@pytest.mark.parametrize(
    ("engine", "lose", "options"),
    [
        ("28.5", reinstall, ["--subnet", "10.231.0.0/24"]),
        pytest.param(
            "20.10",
            empty,
            ["--ipam-driver", DRIVER, "-o", "vni=4711", "--aux-address", "it=10.231.0.9"],
            marks=pytest.mark.faults,
        ),
    ],
)
def test_alone(engine: str, lose: Callable[[Host, Path], None], options: list[str], built: Path) -> None:
    """Also a network without containers is there again, and a network can be removed."""
    with Lab(engines=[engine]) as lab:
        (host,) = lab.hosts
        put(host, built)
        if "--subnet" not in options:
            options = [*options, "--subnet", "10.231.0.0/24"]
        host.docker("network", "create", "-d", DRIVER, *options, NETWORK)
        host.docker("network", "create", "-d", DRIVER, "--subnet", "10.232.0.0/24", "idle")
        run(host, "one")
        run(host, "two", "--mac-address", "02:42:00:00:00:22")
        one, two = Container(host, "one"), Container(host, "two")
        with no_ping_lost(one, two.address(NETWORK)):
            lose(host, built)
            run(host, "three")
        three = Container(host, "three")
        assert three.address(NETWORK) not in {one.address(NETWORK), two.address(NETWORK)}
        assert all(three.pings(c.address(NETWORK)) and c.pings("three") for c in (one, two))
        host.docker("run", "-d", "--name", "four", "--network", "idle", "busybox:latest", "sleep", "9999")
        host.docker("rm", "-f", "one", "two", "three", "four")
        host.docker("network", "rm", NETWORK, "idle")
        assert eventually(lambda: ours(host) == NOTHING), ours(host)


def run(host: Host, name: str, *options: str) -> None:
    host.docker(
        "run", "-d", "--name", name, "--network", NETWORK, *options, "busybox:latest", "sleep", "9999"
    )


@pytest.mark.parametrize(("number", "lose"), [(0, empty), (1, reinstall)])
def test_in_a_swarm(number: int, lose: Callable[[Host, Path], None], ground: Playground, built: Path) -> None:
    """On the leader, and on a worker with our IPAM driver; a service is reached at its virtual address."""
    network = ground.network(*(["--ipam-driver", DRIVER] if number else []))
    host = ground.lab.hosts[number]
    containers = ground.everywhere(network)
    service = ground.service(network, 3)
    ground.wait_tasks(service, 3)
    here, there = containers[number], containers[number - 1]
    with no_ping_lost(here, there.address(network)), no_ping_lost(there, here.address(network)):
        lose(host, built)
        assert eventually(lambda: ground.offered(host), 40)
        late = ground.run(host, network)
    taken = {c.address(network) for c in (*containers, *ground.tasks(service))}
    assert late.address(network) not in taken
    assert all(late.pings(c.address(network)) and c.pings(late.address(network)) for c in containers)
    assert eventually(lambda: here.pings(service) and late.pings(service), 20)
