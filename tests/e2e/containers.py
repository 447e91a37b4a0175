"""Words for end-to-end tests: containers, services and what they can reach."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.lab import CommandError, Host, Lab

DRIVER = "pyoverlay:latest"
IMAGE = "busybox:latest"
FOREVER = ["sleep", "86400"]

_Value = TypeVar("_Value")
_numbers = itertools.count(1)
_subnets = itertools.count(10)


def unique(kind: str) -> str:
    """A name that no other test uses."""
    return f"{kind}{next(_numbers)}"


def fresh_subnet() -> str:
    """A subnet that no other test uses."""
    return f"10.201.{next(_subnets)}.0/24"


def eventually(question: Callable[[], _Value], timeout: float = 20.0, every: float = 0.1) -> _Value:
    """Ask until the answer is true; the last answer, or the last error, is what fails the test."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer = question()
            if answer or time.monotonic() > deadline:
                return answer
        except (CommandError, AssertionError, KeyError, IndexError, ValueError):
            if time.monotonic() > deadline:
                raise
        time.sleep(every)


@dataclass
class Container:
    """A running container."""

    host: Host
    name: str

    def exec(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        return self.host.docker("exec", self.name, *argv, check=check, timeout=timeout)

    def python(self, script: str, *args: str, timeout: float = 60) -> str:
        """Run a script of the machine's Python in the container's network."""
        argv = ["nsenter", "-t", self.pid, "-n", sys.executable, "-S", "-c", script, *args]
        return self.host.run(argv, timeout=timeout).stdout.strip()

    def popen(self, script: str, *args: str) -> Any:
        argv = ["nsenter", "-t", self.pid, "-n", sys.executable, "-S", "-c", script, *args]
        return self.host.popen(argv, stdin=-1, stdout=-1, text=True)

    @property
    def pid(self) -> str:
        return self.host.docker("inspect", "-f", "{{.State.Pid}}", self.name)

    def facts(self, network: str) -> dict[str, Any]:
        listed = json.loads(
            self.host.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", self.name)
        )
        return dict(listed[network])

    def address(self, network: str) -> str:
        return str(self.facts(network)["IPAddress"])

    def pings(self, target: str, wait: int = 2) -> bool:
        """Whether one ping is answered."""
        argv = ["docker", "exec", self.name, "ping", "-c", "1", "-W", str(wait), target]
        return self.host.run(argv, check=False, timeout=30).returncode == 0

    def resolves(self, name: str) -> set[str]:
        """The IPv4 addresses that the engine's DNS gives for a name."""
        return set(nslookup(self, name))

    def remove(self) -> None:
        self.host.docker("rm", "-f", self.name, check=False)


def nslookup(container: Container, name: str) -> list[str]:
    """Addresses in nslookup's answer, without the server's own."""
    text = container.exec("nslookup", "-type=a", name, check=False)
    answer = text.split("Name:", 1)[1] if "Name:" in text else ""
    return re.findall(r"Address(?: \d+)?: (\d+\.\d+\.\d+\.\d+)", answer)


def _gossip_hangs(host: Host) -> int:
    """How often an engine has waited for 30 s in vain for another's entries of a network (moby#52862)."""
    return len(re.findall(r"Bulk sync to node \w+ timed out", host.engine_log()))


@dataclass
class Playground:
    """Makes networks, containers and services in a lab, and removes them again."""

    lab: Lab
    driver: str = DRIVER
    networks: list[str] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    services: list[str] = field(default_factory=list)

    @property
    def manager(self) -> Host:
        return self.lab.hosts[0]

    def network(self, *options: str, subnet: str | None = None, driver: str | None = None) -> str:
        name = unique("net")
        subnets = ["--subnet", subnet or fresh_subnet()] if "--subnet" not in options else []
        self.manager.docker(
            "network", "create", "-d", driver or self.driver, "--attachable", *subnets, *options, name
        )
        self.networks.append(name)
        return name

    def run(self, host: Host, network: str, *options: str, command: list[str] | None = None) -> Container:
        """A container on a host; anew, if its engine's gossip hung meanwhile, which no driver can help."""
        container = Container(host, unique("c"))
        self.containers.append(container)
        argv = ["run", "-d", "--name", container.name, "--network", network, *options, IMAGE]
        hangs = _gossip_hangs(host)
        try:
            host.docker(*argv, *(command or FOREVER), timeout=90)
        except CommandError as error:
            failed = "attaching to network failed" in str(error)
            if not failed or not eventually(lambda: _gossip_hangs(host) > hangs, 31):
                raise
            print(f"{host.name}: the engine's gossip hung (moby#52862), once more")
            container.remove()
            return self.run(host, network, *options, command=command)
        return container

    def everywhere(self, network: str, *options: str) -> list[Container]:
        return [self.run(host, network, *options) for host in self.lab.hosts]

    def service(self, network: str, replicas: int, *options: str, command: list[str] | None = None) -> str:
        name = unique("svc")
        argv = ["service", "create", "-d", "--name", name, "--network", network, "--replicas", str(replicas)]
        argv += ["--no-resolve-image", "--stop-grace-period", "1s", *options, IMAGE, *(command or FOREVER)]
        self.manager.docker(*argv)
        self.services.append(name)
        return name

    def tasks(self, service: str) -> list[Container]:
        """The service's running containers on all hosts."""
        listed = []
        for host in self.lab.hosts:
            label = f"label=com.docker.swarm.service.name={service}"
            names = host.docker("ps", "--filter", label, "--format", "{{.Names}}")
            listed += [Container(host, name) for name in names.split()]
        return listed

    def wait_tasks(self, service: str, count: int, timeout: float = 60) -> list[Container]:
        assert eventually(lambda: len(self.tasks(service)) == count, timeout), (
            f"{len(self.tasks(service))} tasks of {service} run, not {count}:\n"
            + self.manager.docker("service", "ps", "--no-trunc", service)
        )
        return self.tasks(service)

    def offered(self, host: Host) -> bool:
        """Whether the Swarm gives a host containers of ours: it must have heard of the enabled plugin there.

        A node reports every 20 s, at times while the plugin is disabled (swarmkit agent nodeUpdatePeriod).
        """
        node = host.docker("info", "-f", "{{.Swarm.NodeID}}")  # a node that came back has its name twice
        shown = self.manager.docker("node", "inspect", "-f", "{{json .Description.Engine.Plugins}}", node)
        return any(plugin["Name"] == self.driver for plugin in json.loads(shown))

    def clear(self) -> None:
        if self.services:
            self.manager.docker("service", "rm", *self.services, check=False)
        for container in self.containers:
            container.remove()
        for network in self.networks:
            eventually(lambda n=network: removed(self.manager, n), timeout=30)  # type: ignore[misc]


def removed(manager: Host, network: str) -> bool:
    """Remove a network; whether it is gone (its last task may still be on its way out)."""
    manager.docker("network", "rm", network, check=False)
    return network not in manager.docker("network", "ls", "--format", "{{.Name}}").split()


@contextmanager
def playground(lab: Lab) -> Iterator[Playground]:
    """A playground that leaves nothing behind."""
    ground = Playground(lab)
    try:
        yield ground
    finally:
        ground.clear()


def ours(host: Host) -> dict[str, list[str]]:
    """Everything of pyoverlay that a host's kernel shows: namespaces, devices, mounts."""
    devices = [d["ifname"] for d in json.loads(host.run(["ip", "-j", "link"]).stdout)]
    mounts = host.run(["cat", "/proc/mounts"]).stdout.splitlines()
    return {
        "namespaces": [n for n in host.run(["ip", "netns"]).stdout.split() if n.startswith("pyoverlay-")],
        "devices": [name for name in devices if name.startswith(("pyo", "port", "vx", "br"))],
        "mounts": [m.split()[1] for m in mounts if " /run/netns/pyoverlay-" in m],
    }


NOTHING: dict[str, list[str]] = {"namespaces": [], "devices": [], "mounts": []}
