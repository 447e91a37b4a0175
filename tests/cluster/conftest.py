from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Bench, EtcdBench, Host, MemoryBench
from tests.lab import etcd_binary


@pytest.fixture(scope="session")
def etcd() -> Path:
    """The etcd 3.5 to test with."""
    return etcd_binary()


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.store)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A fresh, empty store of each kind."""
    made: Bench
    if request.param == "memory":
        made = MemoryBench()
    else:
        made = EtcdBench(request.getfixturevalue("etcd"), tmp_path)
    yield made
    made.close()


MakeHost = Callable[..., Host]


@pytest.fixture
def host(bench: Bench) -> Iterator[MakeHost]:
    """Make a started host on the bench's store; all are stopped at the end."""
    hosts: list[Host] = []

    def make(name: str, **options: Any) -> Host:
        made = Host(name, bench.plane(name, **options)).start()
        hosts.append(made)
        return made

    yield make
    for made in hosts:
        made.plane.stop(leave=False)
