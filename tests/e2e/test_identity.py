"""Hosts that get another identity: in a Swarm made anew, and with another host's state folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import put
from tests.e2e.containers import DRIVER, NOTHING, Playground, eventually, ours, playground
from tests.faults.facts import state, state_folder
from tests.lab import Host, Lab


@pytest.fixture(params=["28.5", pytest.param("20.10", marks=pytest.mark.faults)])
def host(request: pytest.FixtureRequest, built: Path) -> Iterator[Host]:
    with Lab(engines=[request.param]) as lab:
        put(lab.hosts[0], built)
        yield lab.hosts[0]


def init(host: Host) -> None:
    host.docker("swarm", "init", "--advertise-addr", host.address)


def options(host: Host, network: str) -> dict[str, str]:
    """A network's options, once the leader has chosen them."""
    return json.loads(host.docker("network", "inspect", "-f", "{{json .Options}}", network)) or {}


def running(host: Host) -> int:
    """How many tasks of the service run."""
    return len(host.docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=nine").split())


def test_a_swarm_left_and_made_anew_is_as_the_first(host: Host) -> None:
    """With a VNI of the user's choice, our IPAM driver, and a container that runs through it all."""
    before: set[str] = set()
    for turn in range(2):
        init(host)
        networks = {
            "fixed": ["-o", "vni=70001", "--subnet", "10.50.0.0/24"],
            "own": ["--ipam-driver", DRIVER, "--subnet", "10.50.1.0/28"],
        }
        for name, wanted in networks.items():
            argv = ["network", "create", "-d", DRIVER, "--attachable", *wanted, name]
            eventually(lambda argv=argv: host.docker(*argv), 40)  # type: ignore[misc]
        assert eventually(lambda: options(host, "fixed")["vni"] == "70001", 10)
        host.docker(
            "run", "-d", "--name", f"a{turn}", "--network", "fixed", "busybox:latest", "sleep", "9999"
        )
        host.docker(
            *("service", "create", "-d", "--name", "nine", "--replicas", "9", "--network", "own"),
            *("--no-resolve-image", "--endpoint-mode", "dnsrr", "busybox:latest", "sleep", "9999"),
            timeout=90,
        )
        assert eventually(lambda: running(host) == 9, 60), host.docker("service", "ps", "--no-trunc", "nine")
        node = host.docker("info", "-f", "{{.Swarm.NodeID}}")
        assert eventually(lambda: state(host)["host"]["member"] == f"swarm {node}", 10)  # noqa: B023
        assert state(host)["host"]["id"] == node
        before.add(node)
        host.docker("swarm", "leave", "--force")
    assert len(before) == 2
    assert eventually(
        lambda: host.docker("network", "create", "-d", DRIVER, "--subnet", "10.50.1.0/28", "x"), 40
    )
    host.docker("rm", "-f", "a0", "a1")
    host.docker("network", "rm", "x")
    assert eventually(lambda: ours(host) == NOTHING, 30), ours(host)
    assert eventually(lambda: state(host)["host"]["member"].startswith("machine"), 10)
    assert not state(host)["allocations"]


def test_a_copied_state_folder_makes_no_second_host_of_one_identity(built: Path) -> None:
    """As on clones of one image, and when somebody copies the folder by hand."""
    with Lab(engines=["28.5", "28.5", "20.10"]) as lab, playground(lab) as ground:
        _, one, other = lab.hosts
        for host in lab.hosts[:2]:
            put(host, built)
        put(other, built)
        other.docker("plugin", "disable", DRIVER)
        shutil.copy(state_folder(one) / "state.json", state_folder(other) / "state.json")
        other.docker("plugin", "enable", DRIVER)
        assert state(one)["host"]["id"] == state(other)["host"]["id"]
        lab.swarm()
        all_reach_all(ground)
        assert len({state(host)["host"]["id"] for host in lab.hosts}) == 3


def all_reach_all(ground: Playground) -> None:
    network = eventually(ground.network, 40)
    containers = [
        eventually(lambda h=host: ground.run(h, network), 60)  # type: ignore[misc]
        for host in ground.lab.hosts
    ]
    for one in containers:
        assert all(one.pings(other.address(network)) for other in containers)
