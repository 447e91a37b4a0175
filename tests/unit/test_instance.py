"""One instance at a time: who comes second is told who was first, and a file left behind locks nobody out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugin import instance
from plugin.instance import NotTheOwner, owning
from plugin.settings import Settings, load


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "_PATIENCE", 0.2)


def settings(folder: Path, name: str) -> Settings:
    values = {"RUN_DIR": folder / "run", "SOCKET": folder / f"{name}.sock", "STATE_DIR": folder / name}
    return load({f"PYOVERLAY_{key}": str(value) for key, value in values.items()})


def test_the_second_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with owning(settings(tmp_path, "first")):
        with pytest.raises(NotTheOwner) as caught, owning(settings(tmp_path, "second")):
            pass
        with pytest.raises(NotTheOwner, match=r"first\.sock"), owning(settings(tmp_path, "third")):
            pass
    told = str(caught.value)
    assert f"process {os.getpid()}, which has served {tmp_path}/first.sock since 20" in told
    assert "before this one is started" in told


def test_it_begins_when_the_first_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade, when the former process has not quite gone."""
    monkeypatch.setattr(instance, "_PATIENCE", 10.0)

    def own() -> bool:
        with owning(settings(tmp_path, "second")):
            return "second.sock" in (tmp_path / "run" / instance.NAME).read_text()

    with ThreadPoolExecutor(1) as pool:
        with owning(settings(tmp_path, "first")):
            second = pool.submit(own)
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(5)


def test_a_file_that_somebody_left_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / instance.NAME).write_text("a long tale of somebody who was killed " * 20)
    with owning(settings(tmp_path, "first")):
        assert "tale" not in (tmp_path / "run" / instance.NAME).read_text()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / instance.NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(NotTheOwner, match="cannot make sure"), owning(settings(tmp_path, "first")):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
