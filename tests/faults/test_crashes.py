"""Killed anywhere: whatever write was the last, the engine's next call succeeds and all is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import etcd_binary

ROOT = Path(__file__).parents[2]
CALLS = ("CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint", "DeleteNetwork")
LEASES = ("RequestPool", "RequestAddress", "ReleaseAddress", "ReleasePool")


@pytest.mark.kernel
@pytest.mark.store
@pytest.mark.parametrize(
    "names", [CALLS, ("beside", *CALLS), ("beside", *LEASES)], ids=["alone", "beside another", "leases"]
)
def test_killed_before_any_write(names: tuple[str, ...], tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.faults.crashing", str(etcd_binary()), str(tmp_path), *names]
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--fork", "--kill-child", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert done.stdout.count(" points, ") >= 2 * (len(names) - ("beside" in names)), "calls were left out"
