"""Whether the host sees what is mounted below a folder, tried in mount namespaces of every kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.process import ROOT

pytestmark = pytest.mark.kernel

_ASK = "import sys; from pathlib import Path; from driver.kernel.netns import is_passed_on; "
_ASK += "print(is_passed_on(Path(sys.argv[1])))"


@pytest.mark.parametrize(
    ("outside", "inside", "is_seen"),
    [
        ("mount --make-rshared $0", ":", True),
        ("mount --make-rprivate $0", ":", False),
        ("mount --make-rprivate $0", "mount --make-rshared /", False),
        ("mount --make-rshared $0", "mount --make-rprivate /", False),
        ("mount --make-rshared $0", "mount --make-rslave /", False),
        ("mount --make-rshared $0", "mount --make-rslave / && mount --make-rshared /", False),
        ("mount --make-rshared $0", "mount --bind $0 $0 && mount --make-rshared /", True),
    ],
)
def test_what_the_host_sees(tmp_path: Path, outside: str, inside: str, is_seen: bool) -> None:
    """The third is what runc makes of a private folder for a plugin that propagates mounts."""
    script = (
        f"mount -t tmpfs tmpfs $0 && {outside} && "
        f'unshare --mount --propagation unchanged sh -ec \'{inside}; exec "$@"\' $0 "$@" && '
        "grep -c $0/ /proc/self/mountinfo; ls -A $0"
    )
    argv = [sys.executable, "-c", _ASK, str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, str(tmp_path), *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(is_seen), "0"], done.stderr  # and nothing is left
