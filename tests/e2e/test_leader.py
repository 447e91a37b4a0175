"""The store follows the Swarm's leader; what runs goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import Playground, eventually, playground
from tests.e2e.web import WEB, Load, Web, backends, load
from tests.lab import Host, Lab


@pytest.fixture
def managers(built: Path) -> Iterator[Lab]:
    """Three managers and a worker."""
    with Lab(engines=["28.5", "28.5", "20.10", "20.10"]) as lab:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: put(host, built), lab.hosts))
        lab.swarm(managers=3)
        assert eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        yield lab


def leader(asked: Host) -> str:
    listed = asked.docker("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", check=False)
    return next((line.split()[0] for line in listed.splitlines() if line.endswith("Leader")), "")


def store_runs_on(host: Host) -> bool:
    return "etcd" in host.run(["ps", "-e", "-o", "comm="]).stdout.split()


def test_the_leader_is_lost_and_another_takes_over(managers: Lab) -> None:
    ground = Playground(managers)
    h1, h2, h3, h4 = managers.hosts
    assert store_runs_on(h1)
    assert not any(store_runs_on(host) for host in (h2, h3, h4))
    network = ground.network()
    _, on2, on3, on4 = ground.everywhere(network)
    service = ground.service(network, 4, command=WEB)
    ground.wait_tasks(service, 4)
    web = Web(ground, network, service, [on2, on3, on4])
    web.wait(4)
    meter = h4.popen(
        ["docker", "exec", on4.name, "ping", "-i", "0.05", "-c", "400", "-W", "1", on2.address(network)],
        stdout=-1,
        text=True,
    )
    lost = {task.address(network) for task in ground.tasks(service) if task.host is h1}
    with load(on4, web.vip) as seen:
        left = without(managers, h1, web, lost)
    tell("the Swarm's leader", seen, left)
    assert eventually(lambda: leader(h2) in ("h2", "h3"), 60)
    chosen = managers.host(leader(h2))
    # A worker's engine may ask the dead manager, at random, and does so for 20 s then.
    new = eventually(lambda: ground.run(h4, network), 90)
    assert eventually(lambda: on3.pings(new.address(network), wait=1), 5)
    late = ground.run(h3, network)
    assert new.pings(late.address(network), wait=1)
    assert on2.pings(late.address(network), wait=1)
    assert eventually(lambda: store_runs_on(chosen), 5)
    assert " 0% packet loss" in meter.communicate(timeout=60)[0], "running traffic was touched"

    web.scale(6)
    lost = {task.address(network) for task in ground.tasks(service) if task.host is h4}
    web.clients = [on2, on3]
    with load(on3, web.vip) as seen:
        left = without(managers, h4, web, lost)
    tell("a worker", seen, left)


def without(lab: Lab, host: Host, web: Web, lost: set[str]) -> tuple[float, float]:
    """Power *host* off; return when, and when nobody's table leads to the *lost* tasks any more."""
    assert lost
    began = time.monotonic()
    lab.remove_host(host)
    watching = [client for client in web.clients if client.host is not host]
    assert eventually(lambda: not any(backends(c, web.vip) & lost for c in watching), 40)
    return began, time.monotonic()


def tell(what: str, seen: Load, left: tuple[float, float]) -> None:
    """What the loss has cost: only those tasks' requests fail, and none once the tables know."""
    began, known_at = left
    failed = [at for at, _, _ in seen.failures]
    took = known_at - began
    print(f"{what} is dead: {seen}, known after {took:.1f} s")
    assert all(began - 1 < at < known_at + 0.1 for at in failed)


@pytest.fixture(scope="module")
def lone(built: Path) -> Iterator[Lab]:
    """A Swarm of one, whose data path has an address and a port of its own."""
    with Lab(engines=["28.5"]) as lab:
        (host,) = lab.hosts
        put(host, built)
        host.spaces.ip(f"addr add 192.0.2.77/24 dev {host.interface}")
        path = ["--data-path-addr", "192.0.2.77", "--data-path-port", "7789"]
        host.docker("swarm", "init", "--advertise-addr", host.address, *path)
        assert eventually(lambda: in_swarm(host), 30)
        yield lab


def test_the_data_path_address_is_the_vtep_and_its_port_the_port(lone: Lab) -> None:
    with playground(lone) as ground:
        network = ground.network()
        (host,) = lone.hosts
        eventually(lambda: ground.run(host, network), 30)
        identity = host.docker("network", "inspect", "-f", "{{.Id}}", network)
        shown = host.run(
            ["ip", "-n", f"pyoverlay-{identity[:12]}", "-d", "link", "show", "type", "vxlan"]
        ).stdout
        assert "local 192.0.2.77 " in shown
        assert "dstport 7789 " in shown


def test_a_locked_swarm_is_explained_in_the_log(lone: Lab) -> None:
    """`swarm update --autolock` encrypts the manager's key: no store then, and the log says what to do."""
    (host,) = lone.hosts
    host.docker("swarm", "update", "--autolock=true")
    host.docker("plugin", "disable", "-f", "pyoverlay:latest")
    host.docker("plugin", "enable", "pyoverlay:latest")
    said = eventually(lambda: [s for s in host.engine_log().splitlines() if "--autolock=false" in s], 15)
    assert "PYOVERLAY_STORE" in said[0]
