"""The control path beside Docker's built-in overlay: connect, disconnect, run, fifty containers at once.

    .venv/bin/python -m bench.calls [--quick]

`network connect` and `disconnect` are the engine's own time, asked by its API as the command asks; the start
of a command would only make differences look smaller. `docker run` is the command. What its own calls
take the plugin, and its start: see `bench.alone`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from bench.figures import Figures, Measure
from bench.report import alone
from bench.scene import DRIVERS, apart, turns
from tests.e2e.containers import FOREVER, IMAGE, Playground, playground, unique
from tests.lab import Host, Lab

PART = "calls"
ALONE = "docker run --rm, the network's only container on the host"
NO_OTHER_HOST = {"none": "none", "bridge": "bridge"}
"""The engine's own networks, for comparison."""
PATIENCE = 120
"""Seconds in which the engine must have started or removed a crowd."""


def run(figures: Figures, lab: Lab, *, quick: bool) -> None:
    """Measure on the last host of *lab*, which is a worker of the Swarm."""
    host, rounds = lab.hosts[-1], 2 if quick else 10
    with playground(lab) as ground:
        empty = networks(ground)
        runs(figures, host, ALONE, empty, rounds)
        shared = networks(ground)
        for network in shared.values():
            ground.everywhere(network)
        connects(figures, ground, shared, 3 if quick else 25)
        runs(figures, host, "docker run --rm", {**NO_OTHER_HOST, **shared}, rounds)
        crowds(figures, host, shared, count=10 if quick else 50, rounds=1 if quick else 2)
    apart(figures, "bench.alone", *(["--cycles", "20", "--starts", "2"] if quick else []))


def networks(ground: Playground) -> dict[str, str]:
    """Make a network of each driver."""
    return {name: ground.network(driver=driver) for name, driver in DRIVERS.items()}


def connects(figures: Figures, ground: Playground, shared: Mapping[str, str], rounds: int) -> None:
    """Connect a container that runs, and disconnect it."""
    target = ground.run(ground.lab.hosts[-1], "bridge")
    for number in range(rounds):
        for name in turns(number):
            for what, work in (("connect", connect), ("disconnect", disconnect)):
                took = seconds(work, target.host, shared[name], target.name)
                figures.add(Measure(PART, f"network {what}", "ms"), name, took * 1000)


def runs(figures: Figures, host: Host, what: str, among: Mapping[str, str], rounds: int) -> None:
    """Run a container that ends at once, from the command to its end and removal."""
    for number in range(rounds):
        for name in among if number % 2 == 0 else reversed([*among]):
            took = seconds(host.docker, "run", "--rm", "--network", among[name], IMAGE, "true")
            figures.add(Measure(PART, what, "ms"), name, took * 1000)


def crowds(figures: Figures, host: Host, shared: Mapping[str, str], *, count: int, rounds: int) -> None:
    """Start many containers at once."""
    measure = Measure(PART, f"{count} containers started at once, until all run", "s")
    for number in range(rounds):
        for name in turns(number):
            figures.add(measure, name, crowd(host, shared[name], count))


def crowd(host: Host, network: str, count: int) -> float:
    """Create containers, start them at once, return the seconds until all ran; they are removed."""
    names = [unique("crowd") for _ in range(count)]
    settings = {"Image": IMAGE, "Cmd": FOREVER, "HostConfig": {"NetworkMode": network}}
    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda name: post(host, f"/containers/create?name={name}", settings), names))
            return seconds(
                lambda: list(pool.map(lambda name: post(host, f"/containers/{name}/start"), names))
            )
    finally:
        host.docker("rm", "-f", *names, timeout=PATIENCE)


def connect(host: Host, network: str, container: str, address: str = "") -> None:
    """`docker network connect`."""
    config = {"IPAMConfig": {"IPv4Address": address}} if address else {}
    post(host, f"/networks/{network}/connect", {"Container": container, "EndpointConfig": config})


def disconnect(host: Host, network: str, container: str) -> None:
    """`docker network disconnect`."""
    post(host, f"/networks/{network}/disconnect", {"Container": container})


def post(host: Host, path: str, body: object = None) -> None:
    """Ask the engine's API for something; returns when it is done."""
    data = None if body is None else json.dumps(body).encode()
    host.api("POST", path, data, {"Content-Type": "application/json"}, timeout=PATIENCE)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return how long *work* took."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    alone(run)
