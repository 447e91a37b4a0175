"""The same faults for pyoverlay and for Docker's built-in overlay, at the same moments, under traffic.

    .venv/bin/python -m bench.faults [--tries 2] [--engine 28.5] [--only flap]

Containers of both networks run on the same hosts, so one cut cable hits both. Per fault and network:
datagrams lost (1,000 a second both ways), and the seconds from the fault's end to the last lost one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import Container, Playground, eventually, playground
from tests.faults.faults import control_planes
from tests.faults.scene import PairMeter
from tests.lab import Host, Lab, build_plugin

ROOT = Path(__file__).parent.parent
DRIVERS = ("pyoverlay", "overlay")
NEVER = 60.0
"""Stands for: still broken when the trial stopped watching, which is up to 60 seconds after the fault."""
LEARNT = 315.0
"""Seconds of silence after which a VXLAN device has forgotten what it has learnt."""


@dataclass(slots=True)
class Ground:
    """Two hosts and two networks, a container of each on each; the second host is the one that suffers."""

    lab: Lab
    playground: Playground
    networks: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, tuple[Container, Container]] = field(default_factory=dict)

    @property
    def host(self) -> Host:
        return self.lab.hosts[1]


@dataclass(frozen=True, slots=True)
class Result:
    """What one try has cost."""

    lost: int | None
    """None where the containers end, so that nothing was counted."""
    seconds: float


Trial = Callable[[Ground], dict[str, Result]]


def flowing(do: Callable[[Ground], None], after: float) -> Trial:
    """A trial in which containers live on: *do* breaks something and mends what is ours to mend."""

    def trial(ground: Ground) -> dict[str, Result]:
        meters = {name: PairMeter(*ground.pairs[name], ground.networks[name]) for name in DRIVERS}
        time.sleep(0.5)
        do(ground)
        ended = time.time()
        time.sleep(after)
        stopped = time.time()
        with ThreadPoolExecutor() as pool:
            readings = dict(zip(meters, pool.map(lambda meter: meter.stop(), meters.values()), strict=True))
        results = {}
        for name, reading in readings.items():
            broken = reading.last_loss > stopped - 1
            results[name] = Result(reading.lost, NEVER if broken else max(0.0, reading.last_loss - ended))
        mend(ground, results)
        return results

    return trial


def mend(ground: Ground, results: dict[str, Result]) -> None:
    """What stays broken is made anew, as its users have to, lest it spoil the next try."""
    for name, result in results.items():
        if result.seconds >= NEVER:
            old = ground.pairs[name]
            for container in old:
                container.remove()
            ground.pairs[name] = pair(ground, name)


def cut(seconds: float, times: int = 1, pause: float = 0.0) -> Callable[[Ground], None]:
    def do(ground: Ground) -> None:
        for number in range(times):
            time.sleep(pause if number else 0)
            ground.lab.cut(ground.host)
            time.sleep(seconds)
            ground.lab.heal(ground.host)

    return do


def remove_rows(ground: Ground) -> None:
    """All FDB rows and neighbours of both networks, in the namespaces of the second host."""
    script = """
for path in /run/netns/pyoverlay-* /run/docker/netns/1-* ; do
  for device in $(nsenter --net=$path ip -br link show type vxlan | sed 's/[ @].*//'); do
    nsenter --net=$path bridge fdb show dev $device | sed -n 's/^\\([^ ]*\\) .*dst \\([^ ]*\\) .*/\\1 \\2/p' |
      while read mac dst; do nsenter --net=$path bridge fdb del $mac dev $device dst $dst self; done
    nsenter --net=$path ip neigh flush dev $device nud permanent
  done
done
"""
    ground.host.run(["sh", "-c", script])


def restart(ground: Ground, *, kill: bool) -> dict[str, Result]:
    """The engine's containers end; timed is from its answer until their successors are reached."""
    ground.host.stop_engine(kill=kill)
    ground.host.start_engine()
    return {name: Result(None, seconds) for name, seconds in reached(ground).items()}


def reached(ground: Ground) -> dict[str, float]:
    """Seconds from now until the second host's containers answer."""
    began = time.monotonic()

    def wait(name: str) -> float:
        one, other = ground.pairs[name]
        ok = eventually(lambda: one.pings(other.address(ground.networks[name]), wait=1), NEVER)
        return time.monotonic() - began if ok else NEVER

    with ThreadPoolExecutor() as pool:
        return dict(zip(DRIVERS, pool.map(wait, DRIVERS), strict=True))


def lose_touch(ground: Ground) -> dict[str, Result]:
    """Control planes are cut while traffic flows (moby#52661), then the containers are silent for a while.

    The built-in's VXLAN devices learn addresses from that traffic, and what they have learnt stands in the
    way of the permanent rows that the returning node should get; it ages after 300 seconds of silence.
    """
    meters = {name: PairMeter(*ground.pairs[name], ground.networks[name]) for name in DRIVERS}
    time.sleep(0.5)
    control_planes(ground.host, cut=True)
    time.sleep(60)
    control_planes(ground.host, cut=False)
    time.sleep(30)
    with ThreadPoolExecutor() as pool:
        readings = dict(zip(meters, pool.map(lambda meter: meter.stop(), meters.values()), strict=True))
    time.sleep(LEARNT)
    results = {name: Result(readings[name].lost, seconds) for name, seconds in reached(ground).items()}
    mend(ground, results)
    return results


TRIALS: dict[str, Trial] = {
    "host cut off for 5 s": flowing(cut(5), 10),
    "host cut off for 30 s": flowing(cut(30), 15),
    "node flaps (4 x 12 s off, 4 s on)": flowing(cut(12, 4, 4), 15),
    "host cut off for 90 s": flowing(cut(90), 20),
    "control planes cut for 60 s, then 315 s of silence": lose_touch,
    "rows removed by hand": flowing(remove_rows, 40),
    "engine stopped and started": lambda ground: restart(ground, kill=False),
    "engine killed and started": lambda ground: restart(ground, kill=True),
}


def pair(ground: Ground, name: str) -> tuple[Container, Container]:
    network = ground.networks[name]
    one, other = (
        eventually(lambda h=h: ground.playground.run(h, network, "--restart", "always"), 30)  # type: ignore[misc]
        for h in ground.lab.hosts[:2]
    )
    assert eventually(lambda: one.pings(other.address(network)), 20), f"{name} does not work at all"
    return one, other


def report(results: dict[str, dict[str, list[Result]]]) -> None:
    print(f"\n{'fault':52} {'network':10} {'tries':>5} {'lost, median':>13} {'s until right, worst':>31}")
    for fault, found in results.items():
        for name in DRIVERS:
            seconds = [r.seconds for r in found[name]]
            worst = "not seen" if max(seconds) >= NEVER else f"{max(seconds):.2f}"
            middle = statistics.median(seconds)
            text = f"{'not seen' if middle >= NEVER else f'{middle:.2f}'} / {worst}"
            counted = [r.lost for r in found[name] if r.lost is not None]
            lost = f"{statistics.median(counted):.0f}" if counted else "-"
            print(f"{fault:52} {name:10} {len(seconds):5} {lost:>13} {text:>31}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--engine", default="28.5")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[Result]]] = {}
    with Lab(engines=[arguments.engine] * 3) as lab:
        for host in lab.hosts:
            put(host, build_plugin(ROOT), PYOVERLAY_LOG_LEVEL="info")
        lab.swarm()
        eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        with playground(lab) as made:
            ground = Ground(lab, made)
            ground.networks = {
                "pyoverlay": made.network(subnet="10.250.1.0/24"),
                "overlay": made.network(subnet="10.250.2.0/24", driver="overlay"),
            }
            ground.pairs = {name: pair(ground, name) for name in DRIVERS}
            for fault, trial in TRIALS.items():
                for _ in range(arguments.tries if arguments.only in fault else 0):
                    for name, result in trial(ground).items():
                        results.setdefault(fault, {n: [] for n in DRIVERS})[name].append(result)
                        print(f"{fault}: {name}: {result}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
