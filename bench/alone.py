"""What each call takes, and a start: the plugin's own process, with kernel and etcd but without an engine.

    unshare --net --mount --pid --fork --kill-child --mount-proc .venv/bin/python -m bench.alone [--json]

`bench.calls` runs this. The calls come over the Unix socket as the engine's do, each on a connection of its
own, because the plugin closes each; they follow each other at once.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import OURS, Figures, Measure
from bench.process import VTEP, Plugin
from bench.report import table
from driver.kernel import netns
from driver.kernel.netlink.socket import Channel, Request, attribute
from tests.cluster.harness import running, start_members
from tests.faults.story import BESIDE, FIRST, GIVE_BACK, NETWORK, TAKE, Step, life
from tests.lab import etcd_binary

SHARE = ("CreateEndpoint", "Join", "EndpointOperInfo")
"""What an engine of a Swarm asks the plugin for one `network connect`."""

_NEWLINK, _IFNAME, _NET_NS_FD = 16, 3, 28


class Sandbox:
    """A container's namespace, and what the engine does with devices."""

    def __init__(self) -> None:
        self._here, self._there = netns.current(), netns.create()
        self._host, self._inside = Channel.here(), netns.inside(self._there, Channel.here)

    def do(self, step: Step) -> None:
        """Move the container end of the step's endpoint in, or back out."""
        name = attribute(_IFNAME, f"pyo{step.endpoint[:12]}\0".encode())
        channel, target = (self._host, self._there) if step.method == TAKE else (self._inside, self._here)
        place = attribute(_NET_NS_FD, struct.pack("=I", target))
        channel.do(Request(_NEWLINK, 0, bytes(16) + name + place))


@contextmanager
def store(address: str = "127.0.0.1") -> Iterator[tuple[Path, str]]:
    """Run an etcd on an address of this host; give a folder for whoever uses it, and its URL."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(start_members(etcd_binary(), folder / "etcd", 1, address)) as (member,):
            yield folder, member.url


def starts(figures: Figures, folder: Path, url: str, times: int) -> None:
    """Measure starts of the process until it answers, nothing being in its state."""
    measure = Measure("calls", "plugin ready after start", "s")
    for _ in range(times):
        plugin = Plugin(folder, url)
        figures.add(measure, OURS, plugin.start())
        plugin.stop()


def tails(figures: Figures) -> None:
    """Add the 99th percentile of each measure of milliseconds."""
    for figure in figures.all():
        measure = figure.measure
        if measure.unit == "ms":
            tail = sorted(figure.samples[OURS])[len(figure.samples[OURS]) * 99 // 100]
            figures.add(Measure(measure.part, f"{measure.name}, p99", "ms"), OURS, tail)


def cycles(figures: Figures, plugin: Plugin, times: int) -> None:
    """Measure every call of a network's life with two containers, *times* times over."""
    sandbox, story = Sandbox(), story_with_question()
    for _ in range(times):
        share = 0.0
        for step in story:
            if step.method in (TAKE, GIVE_BACK):
                sandbox.do(step)
                continue
            began = time.perf_counter()
            plugin.call(step.method, step.body)
            took = (time.perf_counter() - began) * 1000
            figures.add(Measure("calls", named(step), "ms"), OURS, took)
            share += took if step.endpoint == FIRST and step.name in SHARE else 0
        figures.add(
            Measure("calls", f"our share of a network connect ({', '.join(SHARE)})", "ms"), OURS, share
        )


def story_with_question() -> list[Step]:
    """A network's life, in which the engine asks what it asks of each container that it has started."""
    story = life(NETWORK, FIRST, beside=True)
    taken = next(i for i, step in enumerate(story) if step.method == TAKE and step.endpoint == FIRST)
    ids = {"NetworkID": NETWORK, "EndpointID": FIRST}
    return [*story[: taken + 1], Step("NetworkDriver.EndpointOperInfo", ids), *story[taken + 1 :]]


def named(step: Step) -> str:
    """Name a call; those that make and unmake all of a network in the kernel are others."""
    if step.endpoint == BESIDE and step.name == "Join":
        return f"{step.method}, first container"
    if step.endpoint == BESIDE and step.name == "DeleteEndpoint":
        return f"{step.method}, last container"
    return step.method


def prepare() -> None:
    """Make of this namespace a host with an underlay."""
    subprocess.run(
        "ip link set lo up; ip link add eth0 type bridge; ip link set eth0 up", shell=True, check=True
    )
    subprocess.run(["ip", "address", "add", f"{VTEP}/24", "dev", "eth0"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = Figures()
    prepare()
    with store() as (folder, url):
        starts(figures, folder / "starts", url, arguments.starts)
        with Plugin(folder / "plugin", url) as plugin:
            cycles(figures, plugin, arguments.cycles)
    tails(figures)
    print(json.dumps(figures.dump()) if arguments.json else table(figures.all()))


if __name__ == "__main__":
    main()
