"""The wheel holds the program, all of it and nothing else, and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "plugin", "driver", "ipam", "lib"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == set(listed.stdout.split())


def test_it_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    run = subprocess.run(
        [str(target / "bin" / "pyoverlay"), "--version"],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("pyoverlay ")


def test_the_plugins_configuration_names_settings_that_exist() -> None:
    """A setting that config.json declares and the program does not know would stop every start."""
    from plugin.settings import Settings

    declared = json.loads((ROOT / "config.json").read_text())["env"]
    known = {f"PYOVERLAY_{name.upper()}" for name in Settings.model_fields}
    assert {variable["name"] for variable in declared} <= known
    defaults = {v["name"]: v["value"] for v in declared}
    assert Settings() == Settings.model_validate(
        {name.removeprefix("PYOVERLAY_").lower(): value for name, value in defaults.items() if value}
    )
