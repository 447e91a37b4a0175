"""`pyoverlay serve` as an ordinary process beside a stand-alone engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.containers import NOTHING, Container, eventually, ours
from tests.lab import CommandError, Host, Lab

ROOT = Path(__file__).parent.parent.parent
SOCKET = "/run/docker/plugins/pyoverlay.sock"


@contextmanager
def serving(
    host: Host, *runner: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = host.popen([sys.executable, "-m", *runner, "plugin.cli", "serve"], cwd=ROOT, env=env)
    try:
        assert eventually(host.path(SOCKET).exists, 10)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab(engines=["28.5"]) as lab, serving(lab.hosts[0]):
        yield lab.hosts[0]


@contextmanager
def network(host: Host, *options: str) -> Iterator[str]:
    host.docker("network", "create", "-d", "pyoverlay", *options, "net")
    try:
        yield "net"
    finally:
        names = host.docker("ps", "-aq", "--filter", "network=net").split()
        if names:
            host.docker("rm", "-f", *names)
        host.docker("network", "rm", "net")


def run(host: Host, name: str, *options: str) -> Container:
    host.docker("run", "-d", "--name", name, "--network", "net", *options, "busybox:latest", "sleep", "86400")
    return Container(host, name)


def test_ipv4_and_ipv6_in_one_network(host: Host) -> None:
    with network(host, "--ipv6", "--subnet", "10.240.0.0/24", "--subnet", "fd00:24::/64"):
        one, two = run(host, "one"), run(host, "two", "--ip6", "fd00:24::77")
        assert one.pings(two.address("net"))
        assert one.pings("fd00:24::77")
        assert two.pings(one.facts("net")["GlobalIPv6Address"])
        assert one.pings("two")
    assert eventually(lambda: ours(host) == NOTHING), ours(host)


def test_our_ipam_gives_pools_gateways_and_addresses(host: Host) -> None:
    with network(host, "--ipam-driver", "pyoverlay", "--ipv6"):
        config = json.loads(host.docker("network", "inspect", "-f", "{{json .IPAM.Config}}", "net"))
        assert len(config) == 2
        one, two = run(host, "one"), run(host, "two")
        assert one.pings(two.address("net"))
        assert one.pings(two.facts("net")["GlobalIPv6Address"])
        taken = two.address("net")
        with pytest.raises(CommandError, match=taken):
            run(host, "three", "--ip", taken)
    with network(
        host, "--ipam-driver", "pyoverlay", "--subnet", "10.241.0.0/24", "--ip-range", "10.241.0.64/26"
    ):
        one = run(host, "four")
        assert one.address("net").startswith("10.241.0.")
        assert 64 <= int(one.address("net").rsplit(".", 1)[1]) < 128
        fixed = run(host, "five", "--ip", "10.241.0.200")
        assert one.pings(fixed.address("net"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "vni=0"], ["vni", "'0'", "1 to 16777215"]),
        (["-o", "vni=abc"], ["vni", "abc"]),
        (["-o", "vxlan_port=65536"], ["vxlan_port", "65536"]),
        (["-o", "mtu=99"], ["mtu", "99", "576"]),
        (["-o", "encrypted="], ["encrypted", "remove it"]),
        (["-o", "mtu=1400", "-o", "com.docker.network.driver.mtu=1450"], ["only one"]),
        (["--ipam-driver", "null"], ["subnet"]),
        (["--ipam-driver", "pyoverlay", "--ipam-opt", "a=b"], ["a", "b"]),
        (["--ipam-driver", "pyoverlay", "--subnet", "10.0.0.1/33"], ["10.0.0.1/33"]),
    ],
)
def test_bad_input_is_the_commands_own_error_and_leaves_nothing(
    host: Host, options: list[str], words: list[str]
) -> None:
    with pytest.raises(CommandError) as failure:
        host.docker("network", "create", "-d", "pyoverlay", *options, "bad")
    for word in words:
        assert word in str(failure.value)
    assert "bad" not in host.docker("network", "ls", "--format", "{{.Name}}").split()
    assert ours(host) == NOTHING


def test_an_unknown_endpoint_option_is_the_commands_own_error(host: Host) -> None:
    with network(host, "--subnet", "10.242.0.0/24"):
        one = run(host, "one")
        host.docker("network", "disconnect", "net", "one")
        with pytest.raises(CommandError, match="'color'"):
            host.docker("network", "connect", "--driver-opt", "color=blue", "net", "one")
        host.docker("network", "connect", "net", "one")
        assert one.address("net")


def test_killed_and_started_again_it_goes_on(host: Host) -> None:
    with Lab(engines=["20.10"]) as lab:
        other = lab.hosts[0]
        with serving(other) as process:
            other.docker("network", "create", "-d", "pyoverlay", "--subnet", "10.243.0.0/24", "net")
            one, two = run(other, "one"), run(other, "two")
            process.kill()
            process.wait(10)
            assert one.pings(two.address("net"))
        other.path(SOCKET).unlink(missing_ok=True)
        with serving(other):
            three = run(other, "three")
            assert three.pings(one.address("net"))
            assert two.pings(three.address("net"))
            other.docker("rm", "-f", "one", "two", "three")
            other.docker("network", "rm", "net")
            assert eventually(lambda: ours(other) == NOTHING), ours(other)
