"""The check of coverage can fail, and counts what all processes of a run have reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.floors import Share, by_room, problems

ROOT = Path(__file__).parents[2]
BRANCH = """
import sys


def size(number: int) -> str:
    if number > 9:
        return "large"
    return "small"


size(int(sys.argv[1]))
"""
FORK = """
import os, subprocess, sys

subprocess.run([sys.executable, "-m", "house.room", "1"], cwd=os.environ["ROOT"], check=True)
if os.fork() == 0:
    sys.path.insert(0, os.environ["ROOT"])
    sys.argv[1:] = ["10"]
    import house.room
    os._exit(0)
os.wait()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one room, with the settings of this one."""
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.coverage.run]")[2].partition("\n\n")[0]
    settings = settings.replace('["plugin", "driver", "ipam", "lib"]', '["house"]')
    (tmp_path / "pyproject.toml").write_text(f"[tool.coverage.run]{settings}")
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "room.py").write_text(BRANCH)
    (tmp_path / "house" / "unused.py").write_text("LINE = 1\n")
    return tmp_path


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": str(ROOT), "ROOT": str(project), "COVERAGE_PROCESS_CONFIG": None}
    env = {key: value for key, value in {**os.environ, **own}.items() if value is not None}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=env, capture_output=True, text=True, check=False
    )


def checked(project: Path, floors: dict[str, int]) -> subprocess.CompletedProcess[str]:
    script = f"import sys; from tests.floors import main; sys.exit(main({floors}))"
    return python(project, "-c", script)


def test_every_process_counts(project: Path) -> None:
    (project / "parent.py").write_text(FORK)
    assert python(project, "-m", "coverage", "run", "parent.py").returncode == 0
    done = checked(project, {"house/room.py": 100, "house": 0})
    assert (done.returncode, done.stderr) == (0, "")
    assert "100.0 %  floor 100  missing    0  house/room.py" in done.stdout
    assert "0.0 %  floor   0  missing    1  house\n" in done.stdout, "a file that nobody imports counts"
    assert not list(project.glob(".coverage*"))


def test_a_branch_that_nobody_took_is_seen(project: Path) -> None:
    python(project, "-m", "coverage", "run", "-m", "house.room", "1")
    done = checked(project, {"house/room.py": 76, "house": 0})
    assert done.returncode == 1
    assert done.stderr == (
        "coverage: house/room.py: 75.0 % is below the floor of 76 %; write the missing tests\n"
    )
    # 5 of 6 statements and 1 of 2 branches


def test_no_data_is_not_taken_for_success(project: Path) -> None:
    done = checked(project, {"house": 0})
    assert done.returncode == 1
    assert "No data to combine" in done.stderr


def test_the_longest_path_decides() -> None:
    files = {"a/x.py": Share(1, 2), "a/b/y.py": Share(3, 4), "a/b/z.py": Share(5, 6), "ab/w.py": Share(7, 8)}
    rooms = by_room(files, ["a", "a/b", "a/b/z.py"])
    assert rooms == {
        "a": Share(1, 2), "a/b": Share(3, 4), "a/b/z.py": Share(5, 6), "ab/w.py": Share(7, 8)
    }  # fmt: skip


def test_a_room_without_floor_or_without_files_is_a_problem() -> None:
    assert problems({"new": Share(1, 1)}, {"gone": 90}) == [
        "gone: nothing was measured; has it moved?",
        "new: has no floor",
    ]


def test_what_is_just_on_the_floor_is_enough() -> None:
    assert problems({"room": Share(90, 100), "empty": Share()}, {"room": 90, "empty": 100}) == []
    assert len(problems({"room": Share(899, 1000)}, {"room": 90})) == 1
