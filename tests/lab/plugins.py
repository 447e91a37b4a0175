"""Puts a managed plugin on a host: for real, or quickly with the same result."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .host import Host


def put_plugin(
    host: Host,
    rootfs: Path,
    config: Path | Mapping[str, Any],
    name: str,
    *,
    whole: bool,
    timeout: float,
) -> None:
    """Make the plugin `name`, disabled, of a root file system (folder or tar archive) and its config.json.

    `docker plugin create` packs, compresses, digests and unpacks the root file system: ten seconds of
    processor time on every host. Unless `whole`, the engine is given an empty one, and the real one is copied
    to where the engine unpacked that. Such a plugin runs and is removed like any other; it cannot be pushed.
    (A mount in its place does not do: the engine unmounts all below the plugin's folder at every disable.)
    """
    settled = json.loads(config.read_text()) if isinstance(config, Path) else dict(config)
    with tempfile.TemporaryDirectory(prefix="plugin.", dir=host.folder) as folder:
        staged = Path(folder)
        (staged / "config.json").write_text(json.dumps(settled))
        (staged / "rootfs").mkdir()
        if whole and rootfs.is_dir():
            # Bound, not copied; in the host's own mount namespace, where its client reads it.
            host.run(["mount", "--bind", rootfs, staged / "rootfs"])
        elif whole:
            _fill(rootfs, staged / "rootfs")
        try:
            host.docker("plugin", "create", name, str(staged), timeout=timeout)
        finally:
            if whole and rootfs.is_dir():
                host.run(["umount", staged / "rootfs"])
    if not whole:
        plugin = host.docker("plugin", "inspect", "--format", "{{.Id}}", name)
        _fill(rootfs, host.folder / "docker/plugins" / plugin / "rootfs")


def _fill(folder_or_archive: Path, target: Path) -> None:
    if folder_or_archive.is_dir():
        subprocess.run(["cp", "-a", f"{folder_or_archive}/.", str(target)], check=True)
    else:
        subprocess.run(["tar", "-xf", str(folder_or_archive), "-C", str(target)], check=True)
