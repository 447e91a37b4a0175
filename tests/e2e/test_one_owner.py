"""One instance at a time owns a host's networks, on ground that carries it; who is refused is told why.

`docker plugin enable` can only say that nobody listens on the socket: the reason is in the engine's log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import put
from tests.e2e.containers import DRIVER, Container, eventually, ours
from tests.lab import CommandError, Host, Lab

ROOT = Path(__file__).parent.parent.parent
NETWORK, OTHER = "owned", "pyoverlay2:latest"
REFUSED = "the networks of this host already belong to "


@pytest.fixture(
    scope="module",
    params=["20.10", *(pytest.param(one, marks=pytest.mark.faults) for one in ("26.1", "28.5"))],
)
def host(built: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host outside of any Swarm, with the plugin."""
    with Lab(engines=[request.param]) as lab:
        put(lab.hosts[0], built)
        yield lab.hosts[0]


@pytest.fixture
def pair(host: Host) -> Iterator[tuple[Container, Container]]:
    host.docker("network", "create", "-d", DRIVER, "--subnet", "10.230.0.0/24", NETWORK)
    try:
        for name in ("one", "two"):
            host.docker("run", "-d", "--name", name, "--network", NETWORK, "busybox:latest", "sleep", "86400")
        yield Container(host, "one"), Container(host, "two")
    finally:
        host.docker("plugin", "disable", "-f", OTHER, check=False)
        host.docker("plugin", "enable", DRIVER, check=False)
        host.docker("rm", "-f", "one", "two", check=False)
        host.docker("network", "rm", NETWORK, check=False)


@contextmanager
def no_ping_lost(one: Container, two: Container) -> Iterator[None]:
    """Twenty pings a second meanwhile, all of them answered."""
    script = f"echo $$ >/tmp/pid; exec ping -i 0.05 -W 1 {two.address(NETWORK)}"
    meter = one.host.popen(["docker", "exec", one.name, "sh", "-c", script], stdout=-1, text=True)
    try:
        assert eventually(lambda: one.exec("cat", "/tmp/pid", check=False))
        yield
    finally:
        one.exec("sh", "-c", "kill -INT $(cat /tmp/pid)")
        said = meter.communicate(timeout=60)[0]
    assert " 0% packet loss" in said, said


def plugin_id(host: Host, name: str) -> str:
    return str(json.loads(host.api("GET", f"/plugins/{name}/json"))["Id"])


def test_a_second_alias_is_refused_and_costs_no_packet(
    host: Host, built: Path, pair: tuple[Container, Container]
) -> None:
    """And when the first has ended, the second one can be enabled, and the first is refused."""
    one, two = pair
    before, first = ours(host), plugin_id(host, DRIVER)
    with no_ping_lost(one, two):
        with pytest.raises(CommandError):
            host.put_plugin(built / "rootfs", json.loads((built / "config.json").read_text()), OTHER)
        assert ours(host) == before
        assert eventually(lambda: f"{REFUSED}the plugin {first[:12]} " in host.engine_log())
        host.docker("run", "--rm", "--network", NETWORK, "busybox:latest", "true")
    for name in ("one", "two"):
        host.docker("rm", "-f", name)
    host.docker("network", "rm", NETWORK)
    host.docker("plugin", "disable", DRIVER)
    host.docker("plugin", "enable", OTHER)
    with pytest.raises(CommandError):
        host.docker("plugin", "enable", DRIVER)
    assert eventually(lambda: f"{REFUSED}the plugin {plugin_id(host, OTHER)[:12]} " in host.engine_log())


def test_a_private_run_is_refused_with_the_repair(host: Host) -> None:
    """And after the repair, the plugin works."""
    host.docker("plugin", "disable", DRIVER)
    host.run(["mount", "--make-rprivate", "/run"])
    try:
        with pytest.raises(CommandError):
            host.docker("plugin", "enable", DRIVER)
        assert eventually(lambda: "mount --make-rshared /run" in host.engine_log())
    finally:
        host.run(["mount", "--make-rshared", "/run"])
        host.docker("plugin", "enable", DRIVER)


@pytest.mark.faults
def test_a_process_beside_the_plugin_is_refused(host: Host, pair: tuple[Container, Container]) -> None:
    one, two = pair
    before, first = ours(host), plugin_id(host, DRIVER)
    argv = [sys.executable, "-m", "plugin.cli", "serve"]
    with no_ping_lost(one, two):
        process = host.popen(argv, cwd=ROOT, stderr=-1, text=True)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 2
        assert f"{REFUSED}the plugin {first[:12]} " in told
        assert ours(host) == before
