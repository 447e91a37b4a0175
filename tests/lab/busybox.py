"""The one image that every lab host has: busybox:latest, made of the machine's static busybox."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from .packages import ensure
from .paths import CACHE, locked

FORMAT = 2
"""Counts up when what is in the archive changes, so that an older one in the cache is not taken."""

FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "www")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def busybox_tar() -> Path:
    """An archive for `docker load`, written by hand so that its image id is the same on every host."""
    target = CACHE / f"busybox-{FORMAT}.tar"
    if target.exists():
        return target
    ensure("tools")
    with locked("busybox"):
        layer = _layer(Path("/usr/bin/busybox"))
        config = json.dumps(
            {
                "architecture": ARCHITECTURES.get(os.uname().machine, os.uname().machine),
                "os": "linux",
                "created": "2026-01-01T00:00:00Z",
                # `sleep` as PID 1 is deaf to SIGTERM: every stop and service update would wait for 10 s.
                "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], "StopSignal": "SIGKILL"},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
                "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "pyoverlay lab"}],
            }
        ).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = [{"Config": name, "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]
        fresh = target.with_suffix(".new")
        with tarfile.open(fresh, "w") as archive:
            _add(archive, name, config)
            _add(archive, "layer.tar", layer)
            _add(archive, "manifest.json", json.dumps(manifest).encode())
        fresh.rename(target)
    return target


def busybox_root(folder: Path) -> Path:
    """The same root as a plain folder, for a plugin of the lab's own tests."""
    with tarfile.open(fileobj=io.BytesIO(_layer(Path("/usr/bin/busybox")))) as archive:
        archive.extractall(folder)
    return folder


def _layer(binary: Path) -> bytes:
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(folder)
        _add(archive, "bin/busybox", binary.read_bytes(), 0o755)
        for applet in sorted(set(applets) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for name, text in FILES.items():
            _add(archive, name, text.encode())
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))
