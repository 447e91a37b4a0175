"""One Swarm serves all faults; a table at the end says what each has cost."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import built
from tests.faults.idle import Idle, idle_connection
from tests.faults.scene import Scene, scene

__all__ = ["built"]

FAILED = pytest.StashKey[bool]()
ROWS: list[tuple[str, ...]] = []


class Stages:
    """The stage in use; after a failure the next test gets a new one."""

    def __init__(self, built: Path) -> None:
        self._built = built
        self._open: ExitStack | None = None
        self._scene: Scene | None = None

    def get(self) -> Scene:
        if self._scene is None:
            self._open = ExitStack()
            self._scene = self._open.enter_context(scene(self._built))
        return self._scene

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._scene = None


@pytest.fixture(scope="session")
def stages(built: Path) -> Iterator[Stages]:
    made = Stages(built)
    yield made
    made.close()


@pytest.fixture
def stage(stages: Stages, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Three managers and a worker, of three ages, whose containers talk; shared while all is well."""
    made = stages.get()
    yield made
    if request.node.stash.get(FAILED, False) or "spent" in made.notes:
        stages.close()


@pytest.fixture(scope="session")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Idle]:
    with idle_connection(tmp_path_factory.mktemp("idle")) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def open_early(request: pytest.FixtureRequest) -> None:
    """It idles while everything else runs, so that nobody has to wait for it."""
    if any("idle" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("idle")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
        logging.getLogger(__name__).warning("%s: %s", item.name, report.longreprtext)
    return report


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
