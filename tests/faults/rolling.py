"""A rolling upgrade from an older revision, under traffic: `make test-upgrade FROM=<revision>`.

Every host of a Swarm runs the plugin as it was at that revision, with networks, containers and a service.
Then, host by host, it is disabled, upgraded by way of a registry to what is checked out, and enabled. Old and
new have to understand each other meanwhile, and the new one takes over what the old one left: its file, its
kernel objects, its records. Between all pairs of hosts no packet may be lost.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.containers import DRIVER
from tests.faults.scene import Reading, Scene, scene
from tests.lab import Host, build_plugin
from tests.lab.paths import CACHE

ROOT = Path(__file__).resolve().parents[2]
BOUND = 15.0
"""Seconds after a host's upgrade until everything is right again."""


def checkout(revision: str) -> Path:
    """Unpack the tree of *revision*."""
    name = subprocess.run(
        ["git", "rev-parse", "--short=12", f"{revision}^{{commit}}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    target = CACHE / "revisions" / name
    if not target.is_dir():
        target.mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", name], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(target)], stdin=archive.stdout, check=True)
        assert archive.wait() == 0
    return target


def push(stage: Scene, built: Path) -> str:
    """Put the plugin into the lab's registry; return its reference."""
    host, reference = stage.lab.hosts[0], f"{stage.lab.registry()}/pyoverlay:latest"
    staged = host.folder / "next"
    subprocess.run(["cp", "-a", built, staged], check=True)
    host.docker("plugin", "create", reference, str(staged), timeout=180)
    host.docker("plugin", "push", reference, timeout=180)
    host.docker("plugin", "rm", reference)
    shutil.rmtree(staged)
    return reference


def upgrade(host: Host, reference: str) -> float:
    """Upgrade one host; return for how many seconds its plugin was away."""
    began = time.monotonic()
    host.docker("plugin", "disable", "-f", DRIVER)
    argv = ["upgrade", "--grant-all-permissions", "--skip-remote-check", DRIVER, reference]
    host.docker("plugin", *argv, timeout=180)
    host.docker("plugin", "enable", DRIVER)
    return time.monotonic() - began


def measured(stage: Scene, host: Host, reference: str) -> list[Reading]:
    """Upgrade *host* while all pairs of hosts talk."""
    with ExitStack() as stack:
        meters = [stage.meter(one, other) for one, other in itertools.combinations(stage.lab.hosts, 2)]
        for meter in meters:
            stack.callback(meter.abandon)
        time.sleep(1)
        away = upgrade(host, reference)
        took = stage.checker.right_within(BOUND)
        fresh = stage.ground.run(host, stage.network)
        stage.checker.right_within(BOUND)
        fresh.remove()
        stage.ground.containers.remove(fresh)
        stage.checker.right_within(BOUND)
        time.sleep(1)
        readings = [meter.stop() for meter in meters]
    print(f"{host.name} (engine {host.engine}): away {away:.1f} s, right {took:.1f} s after", flush=True)
    return readings


def run(revision: str) -> int:
    """Return how many pairs have lost something."""
    new = build_plugin(ROOT)
    with scene(build_plugin(checkout(revision))) as stage:
        reference = push(stage, new)
        hurt = 0
        for host in stage.lab.hosts:
            for reading in measured(stage, host, reference):
                print(f"    {reading}", flush=True)
                hurt += not reading.whole
    print(f"from {revision}: {hurt} measurements with a loss")
    return hurt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="the commit to upgrade from")
    sys.exit(1 if run(parser.parse_args().revision) else 0)


if __name__ == "__main__":
    main()
