"""Where benchmarks run: a Swarm with the plugin on every host, or namespaces without any engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import BUILT_IN, OURS, Figures
from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import DRIVER, eventually
from tests.lab import Lab, build_plugin

ROOT = Path(__file__).parent.parent
DRIVERS = {OURS: DRIVER, BUILT_IN: "overlay"}
"""What is compared, and what Docker calls it."""


@contextmanager
def swarm(hosts: int = 2, engine: str = "28.5") -> Iterator[Lab]:
    """Make a Swarm of *hosts* equal engines that all have the plugin; it is gone afterwards."""
    built = build_plugin(ROOT)
    with Lab(engines=[engine] * hosts) as lab:
        for host in lab.hosts:
            put(host, built, PYOVERLAY_LOG_LEVEL="info")
        lab.swarm()
        assert eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        yield lab


def turns(number: int) -> Iterator[str]:
    """Yield the names of both drivers; who comes first changes with each round, *number*."""
    yield from DRIVERS if number % 2 == 0 else reversed(DRIVERS)


def apart(figures: Figures, module: str, *arguments: str) -> None:
    """Run a module in namespaces of its own, as the only thing on a host, and add what it has measured.

    It is process 1 there: whatever it started ends with it, however it ends.
    """
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*own, sys.executable, "-m", module, "--json", *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            check=True,
        )
    for figure in Figures.load(json.loads(done.stdout)).all():
        for subject, values in figure.samples.items():
            figures.add(figure.measure, subject, *values)
