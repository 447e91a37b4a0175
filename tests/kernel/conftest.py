from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.hosts import Host


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[], Host]]:
    """Make hosts; they and all that is in them end with the test."""
    with ExitStack() as stack:
        made: list[Host] = []

        def make() -> Host:
            host = Host(tmp_path / f"netns{len(made)}")
            made.append(host)
            stack.callback(host.close)
            return host

        yield make


@pytest.fixture
def host(hosts: Callable[[], Host]) -> Host:
    return hosts()
