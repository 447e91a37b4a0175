"""The managed plugin as an operator handles it: registry, install, settings, disable and enable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers import DRIVER, NOTHING, Container, eventually, ours
from tests.lab import CommandError, Host, Lab

NETWORK = "solo"


@pytest.fixture(scope="module")
def host(built: Path) -> Iterator[Host]:
    """One host outside of any Swarm that has installed the plugin from a registry."""
    with Lab(engines=["20.10"]) as lab:
        host = lab.hosts[0]
        reference = f"{lab.registry()}/pyoverlay:latest"
        host.docker("plugin", "create", reference, str(built), timeout=120)
        host.docker("plugin", "push", reference, timeout=120)
        host.docker("plugin", "rm", reference)
        host.docker(
            "plugin", "install", "--grant-all-permissions", "--alias", "pyoverlay", reference, timeout=120
        )
        yield host


@pytest.fixture
def pair(host: Host) -> Iterator[list[Container]]:
    """Two containers on a network of the one host."""
    host.docker("network", "create", "-d", DRIVER, "--subnet", "10.230.0.0/24", NETWORK)
    names = ["one", "two"]
    try:
        for name in names:
            host.docker("run", "-d", "--name", name, "--network", NETWORK, "busybox:latest", "sleep", "86400")
        yield [Container(host, name) for name in names]
    finally:
        host.docker("plugin", "enable", DRIVER, check=False)
        host.docker("rm", "-f", *names, check=False)
        host.docker("network", "rm", NETWORK, check=False)


def test_installed_from_a_registry_it_serves_one_host(host: Host, pair: list[Container]) -> None:
    one, two = pair
    assert "true" in host.docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}")
    assert one.pings(two.address(NETWORK))
    assert one.pings("two")
    assert two.pings("one")


def test_disabled_and_enabled_under_a_running_network(host: Host, pair: list[Container]) -> None:
    """No ping is lost; what was started before works after, and what comes after works too."""
    one, two = pair
    meter = host.popen(
        ["docker", "exec", "one", "ping", "-i", "0.05", "-c", "160", "-W", "1", two.address(NETWORK)],
        stdout=-1,
        text=True,
    )
    time.sleep(1)
    host.docker("plugin", "disable", "-f", DRIVER)
    time.sleep(1)
    began = time.monotonic()
    host.docker("plugin", "enable", DRIVER)
    assert time.monotonic() - began < 9.5
    assert " 0% packet loss" in meter.communicate(timeout=60)[0]
    host.docker("run", "-d", "--name", "three", "--network", NETWORK, "busybox:latest", "sleep", "86400")
    try:
        assert Container(host, "three").pings("one")
        assert one.pings("three")
    finally:
        host.docker("rm", "-f", "three")


def test_settings_are_set_while_disabled_and_wrong_ones_are_refused_by_name(host: Host) -> None:
    host.docker("plugin", "disable", DRIVER)
    try:
        host.docker("plugin", "set", DRIVER, "PYOVERLAY_VXLAN_PORT=99999", "PYOVERLAY_SCOPE=everywhere")
        with pytest.raises(CommandError):
            host.docker("plugin", "enable", DRIVER)
        log = host.engine_log()
        assert "PYOVERLAY_VXLAN_PORT" in log
        assert "99999" in log
        assert "PYOVERLAY_SCOPE" in log
        assert "auto, local or global" in log
    finally:
        host.docker("plugin", "set", DRIVER, "PYOVERLAY_VXLAN_PORT=4795", "PYOVERLAY_SCOPE=auto")
        host.docker("plugin", "enable", DRIVER)
    host.docker("network", "create", "-d", DRIVER, "--subnet", "10.231.0.0/24", "set")
    host.docker("run", "-d", "--name", "set1", "--network", "set", "busybox:latest", "sleep", "86400")
    try:
        identity = host.docker("network", "inspect", "-f", "{{.Id}}", "set")
        shown = host.run(
            ["ip", "-n", f"pyoverlay-{identity[:12]}", "-d", "link", "show", "type", "vxlan"]
        ).stdout
        assert "dstport 4795" in shown
    finally:
        host.docker("rm", "-f", "set1")
        host.docker("network", "rm", "set")


def test_removed_it_leaves_nothing(host: Host) -> None:
    assert eventually(lambda: ours(host) == NOTHING), ours(host)
    host.docker("plugin", "disable", DRIVER)
    host.docker("plugin", "rm", DRIVER)
    assert host.docker("plugin", "ls", "-q") == ""
    assert ours(host) == NOTHING
