"""One instance at a time owns a host's networks.

Two of them, such as plugins under two aliases, `pyoverlay serve` beside a plugin, or the plugins of two
engines, would share /run/netns, devices and ports, and undo each other's work. So the one that comes second
does nothing at all. The lock is flock(2)'s, on a file in the host's /run, which all of them see. It ends with
the last process of its holder, whatever ends that.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from driver.kernel import netns
from plugin.settings import Settings

NAME: Final = "pyoverlay.lock"
_PATIENCE: Final = 3.0
"""Seconds to wait for a former process that is about to end."""


_SOCKETS: Final = Path("/run/docker/plugins")
"""Where a managed plugin has its folder of the engine's (moby `plugin/v2/plugin_linux.go`: InitSpec)."""
_CUT_OFF: Final = (
    "/run of this host is not a shared mount, so neither the host nor the engine would see the network "
    "namespaces that are made here, and containers would lose their network whenever this plugin ends. Run "
    "mount --make-rshared /run (mount --make-rshared / if /run is no mount of its own), also at each boot, "
    "and then enable the plugin again"
)


class NotTheOwner(Exception):
    """The host's networks cannot be ours; the message says why, and whose they are."""


@contextmanager
def owning(settings: Settings) -> Iterator[None]:
    """Own the host's networks meanwhile, together with all processes that are forked meanwhile.

    Raises NotTheOwner.
    """
    path = settings.run_dir / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
        os.truncate(descriptor, 0)
        os.write(descriptor, _description(settings).encode())
        is_cut_off = settings.managed and not netns.is_passed_on(settings.run_dir)
    except OSError as error:
        raise NotTheOwner(f"{path}: cannot make sure that this is the only instance: {error}") from error
    try:
        if is_cut_off:
            raise NotTheOwner(_CUT_OFF)
        yield
    finally:
        os.close(descriptor)


def plugin_id() -> str:
    """Return the id of the managed plugin that this process is; empty for any other. Raises OSError.

    The engine names its folder after it.
    """
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next((Path(fields[3]).name for fields in lines if fields[4] == str(_SOCKETS)), "")


def _lock(path: Path) -> int:
    """Return the locked file; wait a little for whoever has it. Raises NotTheOwner and OSError."""
    deadline = time.monotonic() + _PATIENCE
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise NotTheOwner(
                f"the networks of this host already belong to {_holder(path)}. Disable that plugin, or end "
                "that process, before this one is started"
            )
        time.sleep(0.1)
    return descriptor


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:500] or "another instance of pyoverlay"
    except FileNotFoundError:
        return "an instance that has just ended"


def _try_lock(path: Path) -> int | None:
    """Return the locked file at *path*, or None when somebody has it; raise OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Else somebody removed it before we had it, and the next to come would lock another one.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _description(settings: Settings) -> str:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    plugin = plugin_id() if settings.managed else ""
    if plugin:
        return f"the plugin {plugin[:12]} (see docker plugin ls), which has run since {since}"
    return f"process {os.getpid()}, which has served {settings.socket} since {since}"
