"""One Swarm serves all faults; a table at the end says what each has cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import built
from tests.faults.scene import Scene, scene

__all__ = ["built"]

ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="session")
def stage(built: Path) -> Iterator[Scene]:
    """Three managers and a worker, of three ages, whose containers talk."""
    with scene(built) as made:
        yield made


@pytest.fixture(scope="session")
def rows() -> list[tuple[str, ...]]:
    """Lines for the table."""
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    lines = [("fault", "lost, others", "lost, the host", "outage s", "right after s", "stall ms"), *ROWS]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.line("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
