"""Where the benchmarks with engines run: a Swarm with the plugin on every host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import eventually
from tests.lab import Lab, build_plugin

ROOT = Path(__file__).parent.parent


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
