"""`make demo`: three Docker engines as a Swarm, pyoverlay on each, and containers that reach each other."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.containers import DRIVER, Container, Playground, eventually
from tests.lab import Host, Lab, build_plugin, clean

ROOT = Path(__file__).parent.parent
ENGINES = ("28.5", "28.5", "20.10")
NETWORK = "demo"
REPLICAS = 6
NAMES = 60.0
"""Seconds; the engines' own gossip, which carries names, may take 30."""
WEB = "mkdir -p /www; hostname -i >/www/index.html; exec httpd -f -h /www"
"""Says the address of the task that answers."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is going on, and how long it took."""
    print(f"\n== {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"   ({time.monotonic() - began:.1f} s)", flush=True)


def up() -> None:
    """Bring everything up and show it; it stays until `make demo-down`."""
    began = time.monotonic()
    with step("the plugin: docker build, then config.json + rootfs"):
        built = build_plugin(ROOT)
    with step(f"three hosts with engines {', '.join(ENGINES)}, each in namespaces of its own"):
        lab = Lab(engines=ENGINES, detached=True)
    with step("docker swarm init, join, join"):
        lab.swarm()
        print(lab.hosts[0].docker("node", "ls"))
    with step("docker plugin install: pushed to a registry on this machine, pulled by every host"):
        _install(lab, built)
        print(lab.hosts[0].docker("plugin", "ls"))
    _show(lab)
    print(f"\nUp in {time.monotonic() - began:.0f} s, and it stays up. `make demo-down` removes every trace.")
    print(f"Look around: {_enter(lab.hosts[0])} docker ps")


def _install(lab: Lab, built: Path) -> None:
    reference = f"{lab.registry()}/pyoverlay:latest"
    first = lab.hosts[0]
    first.docker("plugin", "create", reference, str(built), timeout=120)
    first.docker("plugin", "push", reference, timeout=120)
    first.docker("plugin", "rm", reference)
    command = ("plugin", "install", "--grant-all-permissions", "--alias", "pyoverlay", reference)
    print(f"   docker {' '.join(command)}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: host.docker(*command, timeout=180), lab.hosts))


def _show(lab: Lab) -> None:
    h1 = lab.hosts[0]
    create = ["network", "create", "-d", DRIVER, "--attachable", "--subnet", "10.210.0.0/24", NETWORK]
    with step(f"docker {' '.join(create)}"):
        print(h1.docker(*create))
    with step("every host's plugin is known to the managers (engines tell them every 20 s)"):
        known = Playground(lab)
        eventually(lambda: all(known.offered(host) for host in lab.hosts), 30)
    with step(f"a container on each host, and a service of {REPLICAS} replicas over all of them"):
        containers = [_run(host, f"box{number}") for number, host in enumerate(lab.hosts, 1)]
        service = ["service", "create", "-d", "--name", "web", "--network", NETWORK]
        service += ["--replicas", str(REPLICAS), "--no-resolve-image", "busybox:latest", "sh", "-c", WEB]
        h1.docker(*service)
        full = f"{REPLICAS}/{REPLICAS}"
        eventually(lambda: h1.docker("service", "ls", "--format", "{{.Replicas}}").startswith(full), NAMES)
        _table(lab)
    with step("every container pings every other by name"):
        _mesh(containers)
    with step("`wget http://web/` on each host: one virtual address, and all tasks answer in turn"):
        for container in containers:
            _ask(container)
    with step("what the standard tools show on h1"):
        _kernel(h1)


def _run(host: Host, name: str) -> Container:
    host.docker("run", "-d", "--name", name, "--network", NETWORK, "busybox:latest", "sleep", "86400")
    return Container(host, name)


def _table(lab: Lab) -> None:
    form = '{{.Name}} {{(index .NetworkSettings.Networks "' + NETWORK + '").IPAddress}}'
    print(f"   {'host':5} {'underlay':14} {'engine':8} {'container':34} address")
    for host in lab.hosts:
        version = host.docker("version", "-f", "{{.Server.Version}}").split("+")[0]
        names = host.docker("ps", "-q", "--filter", f"network={NETWORK}").split()
        for line in sorted(host.docker("inspect", "-f", form, *names).splitlines()):
            name, address = line.lstrip("/").split()
            print(f"   {host.name:5} {host.address:14} {version:8} {name[:33]:34} {address}")


def _mesh(containers: list[Container]) -> None:
    for one in containers:
        row = []
        for other in containers:
            answered = eventually(_pinger(one, other.name), NAMES)
            row.append(f"{other.name} {'ok' if answered else 'NO ANSWER'}")
            if not answered:
                sys.exit(f"{one.name} on {one.host.name} does not reach {other.name}")
        print(f"   {one.name} on {one.host.name} -> {', '.join(row)}")


def _pinger(container: Container, target: str) -> Callable[[], bool]:
    return lambda: container.pings(target)


def _ask(container: Container) -> None:
    vip = eventually(lambda: container.resolves("web"), NAMES)
    loop = f"for _ in $(seq {2 * REPLICAS}); do wget -qO- http://web/; done"

    def asked() -> Counter[str]:
        return Counter(container.exec("sh", "-c", loop).split())

    eventually(lambda: len(asked()) == REPLICAS, NAMES)
    answers = asked()
    if len(answers) != REPLICAS:
        sys.exit(f"{container.name} on {container.host.name} is not answered by all tasks: {answers}")
    told = ", ".join(f"{task} x {times}" for task, times in sorted(answers.items()))
    print(f"   {container.name} on {container.host.name}: web is {' '.join(vip)}: {told}")


def _kernel(host: Host) -> None:
    identity = json.loads(host.docker("network", "inspect", NETWORK))[0]["Id"]
    namespace = f"pyoverlay-{identity[:12]}"
    for argv in (
        ["ip", "-n", namespace, "-br", "link"],
        ["ip", "-n", namespace, "-d", "link", "show", "type", "vxlan"],
        ["ip", "netns", "exec", namespace, "bridge", "fdb"],
    ):
        print(f"   # {' '.join(argv)}")
        lines = host.run(argv).stdout.splitlines()
        shown = [line for line in lines if argv[-1] != "fdb" or " dst " in line]
        shown = [line for line in shown if "bridge_slave" not in line]
        print("\n".join(f"   {line}" for line in shown))


def _enter(host: Host) -> str:
    return f"nsenter -t {host.spaces.holder.pid} -n -m -u -p"


def down() -> None:
    """Remove every trace."""
    for lab in clean():
        print(f"removed lab {lab}")
    print("The demo is gone.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("command", choices=["up", "down"])
    {"up": up, "down": down}[parser.parse_args().command]()
