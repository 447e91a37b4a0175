"""Removes what labs left behind, and only that: every trace is told by the lab's own names.

A lab that dies (kill -9, power) leaves no process, mount, link or namespace: the kernel takes them with the
holders. What can be left are files in the cache, empty control groups, and, on purpose, a detached lab.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from .holder import cgroup_mounts
from .paths import DETACHED, LABS, PREFIX, say
from .spaces import Process, started_at, wait_for


def holders() -> Iterator[tuple[str, Process, bool]]:
    """(lab id, process, wanted) of every holder here; wanted: its maker lives, or it is detached."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(argv) < 5 or not argv[3].endswith("holder.py"):
                continue
            spec = json.loads(argv[4])
            prefix, lab, _ = spec["name"].split("-", 2)
            process = Process.of(int(entry.name))
        except (OSError, ValueError, KeyError):
            continue
        if prefix == PREFIX:
            pid, start = spec["owner"]
            yield lab, process, spec["detached"] or started_at(pid) == start


def make_folder(lab: str) -> Path:
    """The folder of a new lab. It says from its first moment who made it, lest a `clean` take it for dead."""
    folder, fresh = LABS / lab, LABS / f".{lab}"
    fresh.mkdir(parents=True)
    (fresh / "owner.json").write_text(json.dumps([os.getpid(), started_at(os.getpid())]))
    return fresh.rename(folder)


def _has_maker(folder: Path) -> bool:
    try:
        pid, start = json.loads((folder / "owner.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(started_at(pid) == start)


def clean(only_dead: bool = False) -> list[str]:
    """Remove dead labs and, unless `only_dead`, this checkout's detached one; returns the ids removed.

    A lab whose maker is alive is left alone: somebody's tests are running in it.
    """
    folders = [folder for folder in LABS.glob("*") if not folder.name.startswith(".")]
    wanted = {lab for lab, _, alive in holders() if alive} | {f.name for f in folders if _has_maker(f)}
    if not only_dead:
        wanted.discard(detached_id())
    traces = {lab for lab, _, _ in holders()} | {_lab_of(group) for group in control_groups()}
    traces |= {folder.name for folder in folders}
    gone = sorted(traces - wanted)
    for lab in gone:
        remove_lab(lab)
    return gone


def detached_id() -> str:
    """The id of this checkout's detached lab, or ""."""
    try:
        return str(json.loads(DETACHED.read_text())["id"])
    except (OSError, ValueError, KeyError):
        return ""


def remove_lab(lab: str) -> None:
    """Remove every trace of one lab: processes first, then control groups, then files."""
    found = [process for name, process, _ in holders() if name == lab]
    for process in found:
        process.kill()
    for process in found:
        if not process.wait(10):
            say(f"process {process.pid} of lab {lab} does not die")
    for group in control_groups(lab):
        # The kernel empties a group a moment after its processes are gone.
        if not wait_for(partial(_remove_group, group), 10):
            say(f"control group {group} is still in use")
    shutil.rmtree(LABS / lab, ignore_errors=True)
    if (LABS / lab).exists():
        say(f"could not remove {LABS / lab}")
    if detached_id() == lab:
        DETACHED.unlink(missing_ok=True)


def control_groups(lab: str = "") -> list[Path]:
    found = []
    for point, _, _ in cgroup_mounts():
        for folder, names, _ in os.walk(point):
            ours = [name for name in names if name.startswith(f"{PREFIX}-{lab}")]
            found += [Path(folder) / name for name in ours]
            names[:] = [name for name in names if name not in ours]
    return found


def _lab_of(group: Path) -> str:
    return group.name.split("-")[1]


def _remove_group(group: Path) -> bool:
    """True when the group and all below it are gone."""
    for folder, names, _ in os.walk(group, topdown=False):
        for name in names:
            _rmdir(Path(folder) / name)
    _rmdir(group)
    return not group.exists()


def _rmdir(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
