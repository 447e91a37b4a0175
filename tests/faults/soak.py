"""Churn and faults at random, for as long as one likes: `make soak MINUTES=30 SEED=…`.

The schedule follows from the seed alone: which step comes next, on which host, with which fault. (How
many steps fit into the time depends on the machine.) After each step the checker must find everything
right; between two hosts that no step of the round hurts, meters count every packet.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.containers import Container, eventually, removed
from tests.e2e.web import WEB, Web, tcp
from tests.faults.checker import FORGOTTEN, ended
from tests.faults.facts import read
from tests.faults.faults import FAULTS, Fault, Traffic
from tests.faults.leaks import Usage, all_usage, leaks, store_keys
from tests.faults.scene import PairMeter, Scene, scene, until
from tests.lab import CommandError, Host, Lab, build_plugin

ROOT = Path(__file__).resolve().parents[2]
CALM = 45.0
"""Bound for a step that is no fault: rows of a dead container's network may wait for an audit."""
FAULT_SHARE = 0.3
SETTLED = 20.0
"""Bound for engines and store to let go of what has just ended."""
MOST = 6
"""Containers beside the anchors, networks beside the first one and replicas, at most."""
CHOSEN = [f for f in FAULTS if not f.slow]


@dataclass(slots=True)
class Soak:
    """The state of a run."""

    scene: Scene
    dice: random.Random
    containers: list[Container] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    service: str = ""
    log: list[str] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: collections.Counter[str] = field(default_factory=collections.Counter)
    worst: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    sent: int = 0

    def host(self) -> Host:
        return self.dice.choice(self.scene.lab.hosts)

    def network(self) -> str:
        return self.dice.choice([self.scene.network, *self.networks])

    # --- steps ------------------------------------------------------------------------------------------

    def start(self) -> None:
        host, network = self.host(), self.network()
        if len(self.containers) < MOST:
            eventually(lambda: self.scene.ground.offered(host), 30)
            self.containers.append(self.scene.ground.run(host, network, "--restart", "always"))

    def stop(self) -> None:
        if self.containers:
            self.remove(self.dice.choice(self.containers))

    def remove(self, gone: Container) -> None:
        gone.remove()
        self.containers.remove(gone)
        self.scene.ground.containers.remove(gone)

    def reconnect(self) -> None:
        """Disconnect a container from the network that it was started in, and connect it again."""
        if self.containers:
            one = self.dice.choice(self.containers)
            network = one.host.docker("inspect", "-f", "{{.HostConfig.NetworkMode}}", one.name)
            one.host.docker("network", "disconnect", network, one.name)
            one.host.docker("network", "connect", network, one.name)

    def make_network(self) -> None:
        if len(self.networks) < MOST:
            self.networks.append(self.scene.ground.network())

    def remove_network(self) -> None:
        if self.networks:
            gone = self.networks.pop(self.dice.randrange(len(self.networks)))
            for one in [c for c in self.containers if gone in networks_of(c)]:
                self.remove(one)
            assert eventually(lambda: removed(self.scene.ground.manager, gone), 30), f"network {gone} stays"
            self.scene.ground.networks.remove(gone)

    def scale(self) -> None:
        """Scale a service, and have its virtual address lead every anchor to all of its tasks."""
        replicas, ground, network = self.dice.randrange(1, MOST), self.scene.ground, self.scene.network
        if not self.service:
            self.service = ground.service(network, replicas, command=WEB)
        web = Web(ground, network, self.service, list(self.scene.anchors.values()))
        tasks = web.scale(replicas)
        for client in web.clients:
            answered = {seen.split()[0] for seen in tcp(client, web.vip, len(tasks))}
            assert answered == tasks, f"{client.name} was answered by {answered}, not by {tasks}"

    def fault(self, chosen: Fault) -> None:
        if chosen.name.startswith("node leaves"):  # whoever leaves a Swarm leaves its networks
            for one in [c for c in self.containers if c.host is self.scene.worker]:
                self.remove(one)
        chosen.do(self.scene)
        time.sleep(chosen.lasts)
        chosen.undo(self.scene)

    # --- the run ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step, under meters, then everything must be right."""
        chosen = self.dice.choice(CHOSEN) if self.dice.random() < FAULT_SHARE else None
        calm = [
            self.start,
            self.start,
            self.stop,
            self.reconnect,
            self.make_network,
            self.remove_network,
            self.scale,
        ]
        action = self.dice.choice(calm)
        name = f"fault: {chosen.name}" if chosen else action.__name__
        hurt = chosen.hosts(self.scene) if chosen and chosen.traffic is not Traffic.WHOLE else []
        whole = [host for host in self.scene.lab.hosts if host not in hurt]
        meter = self.scene.meter(whole[0], whole[-1])
        began = time.monotonic()
        try:
            if chosen:
                self.fault(chosen)
            else:
                action()
            took = self.scene.checker.right_within(chosen.bound if chosen else CALM)
            self.all_run()
        except (AssertionError, CommandError) as error:
            took = -1.0
            self.fail(f"{name}: {error}")
        self.note(name, meter, took, time.monotonic() - began)

    def all_run(self) -> None:
        """Put a new container in the place of each that its engine has not started again, and say so.

        The same one again would get an address that the Swarm does not know of (ADR 13).
        """
        for one in [*self.scene.anchors.values(), *self.containers]:
            if eventually(lambda c=one: c.pid != "0", 10):  # type: ignore[misc]
                continue
            why = one.host.docker("inspect", "-f", "{{.State.Error}}", one.name)
            self.fail(f"the engine of {one.host.name} has not started {one.name} again: {why}")
            if one in self.containers:
                self.remove(one)
            else:
                one.remove()
                self.scene.anchor(one.host)

    def fail(self, text: str) -> None:
        self.failures.append(f"about step {sum(self.counts.values())}: {text}")
        say(self.failures[-1])

    def note(self, name: str, meter: PairMeter, took: float, whole: float) -> None:
        reading = meter.stop()
        self.counts[name] += 1
        self.lost[name] += reading.lost
        self.sent += reading.there.sent + reading.back.sent
        self.worst[name] = max(self.worst.get(name, 0.0), took)
        if not reading.whole:
            self.fail(f"{name}: {reading}")
        number = sum(self.counts.values())
        say(f"{number:4} {name:45} right after {took:5.1f} s of {whole:5.1f}, lost {reading.lost}")

    def clear(self) -> None:
        """Back to the anchors alone, for the count of what is left."""
        ground = self.scene.ground
        if self.service:
            ground.manager.docker("service", "rm", self.service)
        for one in self.containers:
            one.remove()
        for network in self.networks:
            eventually(lambda n=network: removed(ground.manager, n), 30)  # type: ignore[misc]
        until(lambda: not (self.service and ground.tasks(self.service)), "no task is left")


def left_over(lab: Lab, before: Mapping[str, Usage], keys: int) -> list[str]:
    """What is there now, and was not before."""
    found, now = leaks(before, all_usage(lab)), store_keys(lab)
    return [*found, f"store keys {keys} -> {now}"] if now > keys else found


def networks_of(container: Container) -> str:
    return container.host.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", container.name)


def run(
    minutes: float, seed: int, built: Path, enough: Callable[[Soak], bool] = lambda _: False
) -> list[str]:
    """Soak; return everything that was wrong."""
    say(f"seed {seed}, {minutes:g} minutes; the same again: make soak MINUTES={minutes:g} SEED={seed}")
    with scene(built) as made:
        soak = Soak(made, random.Random(seed))
        before, keys = all_usage(made.lab), store_keys(made.lab)
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end and not enough(soak):
            soak.step()
        try:
            soak.clear()
            made.checker.right_within(CALM)
            until(lambda: not any(map(ended, read(made.lab).hosts)), "no record is left over", FORGOTTEN)
        except AssertionError as error:
            soak.fail(str(error))
        eventually(lambda: not left_over(made.lab, before, keys), SETTLED)
        after = all_usage(made.lab)
        found = [*soak.failures, *left_over(made.lab, before, keys)]
        if found:
            made.lab.keep_logs()
        summary(soak, seed, found)
        for name in before:
            say(f"{name}: {before[name]}\n    {after.get(name)}")
        return found


def summary(soak: Soak, seed: int, found: list[str]) -> None:
    say(f"\n{'step':47} {'times':>5} {'lost':>5} {'worst s until right':>20}")
    for name, times in sorted(soak.counts.items()):
        say(f"{name:47} {times:5} {soak.lost[name]:5} {soak.worst[name]:20.1f}")
    steps, lost = sum(soak.counts.values()), sum(soak.lost.values())
    say(f"seed {seed}: {steps} steps, {soak.sent} datagrams, {lost} lost")
    say("\n".join(["failures:", *found]) if found else "no failures")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int(time.time()) % 100_000
    sys.exit(1 if run(arguments.minutes, seed, build_plugin(ROOT)) else 0)


if __name__ == "__main__":
    main()
