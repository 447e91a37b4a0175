"""One Swarm of mixed engines with the plugin on every node serves all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.containers import DRIVER, Playground, eventually, playground
from tests.lab import Host, Lab, build_plugin

ENGINES = ("28.5", "20.10", "26.1")
ROOT = Path(__file__).parent.parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("lab")


@pytest.fixture(scope="session")
def built() -> Path:
    """The built plugin: a folder with config.json and rootfs/."""
    return build_plugin(ROOT)


def put(host: Host, built: Path, **settings: str) -> None:
    """Install the plugin on a host as an operator's `plugin install` does, from the built folder."""
    config = json.loads((built / "config.json").read_text())
    host.put_plugin(built / "rootfs", config, DRIVER, settings={"PYOVERLAY_LOG_LEVEL": "debug", **settings})


def reconfigure(host: Host, setting: str) -> None:
    """Change a setting, NAME=VALUE, as an operator does: that takes a plugin that is disabled."""
    host.docker("plugin", "disable", "-f", DRIVER)
    host.docker("plugin", "set", DRIVER, setting)
    host.docker("plugin", "enable", DRIVER)


@pytest.fixture(scope="session")
def lab(built: Path) -> Iterator[Lab]:
    """Three hosts in a Swarm: a manager and two workers, engines of three ages.

    The plugin is there before the Swarm, and finds out by itself. (Installed after it, managers
    learn of it with the next report of the node, up to 20 s later: swarmkit agent nodeUpdatePeriod.)
    """
    with Lab(engines=ENGINES) as lab:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: put(host, built), lab.hosts))
        lab.swarm()
        assert eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        yield lab


def in_swarm(host: Host) -> bool:
    """Whether the engine of a host that has joined a Swarm takes our networks for the Swarm's.

    It asks the plugin when that has started anew, and refuses a network of this host alone then.
    """
    argv = ["docker", "network", "create", "-d", DRIVER, "--scope", "local", "alone"]
    return "cannot downgrade network scope" in host.run(argv, check=False).stderr


@pytest.fixture
def ground(lab: Lab) -> Iterator[Playground]:
    """Makes networks, containers and services that are gone after the test."""
    with playground(lab) as ground:
        yield ground
