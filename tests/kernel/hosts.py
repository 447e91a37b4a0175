"""Hosts for kernel tests: network namespaces that stand for a machine, with a kernel of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from driver.kernel import netns
from driver.kernel.host import NetlinkKernel

_T = TypeVar("_T")


class Space:
    """A network namespace by descriptor: run programs and open sockets in it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def path(self) -> str:
        """A name that ip(8) takes."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, command: str) -> str:
        """Run a shell command in it; fail with what the command said."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    def json(self, command: str) -> list[dict[str, Any]]:
        """Run a program that prints a JSON list."""
        answer: list[dict[str, Any]] = json.loads(self.run(command) or "[]")
        return answer

    def inside(self, work: Callable[[], _T]) -> _T:
        """Do *work* in it."""
        return netns.inside(self.descriptor, work)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket in it, with a timeout."""
        opened = self.inside(lambda: socket.socket(family, kind, protocol))
        opened.settimeout(5)
        return opened

    def close(self) -> None:
        """Let it end."""
        os.close(self.descriptor)


class Host(Space):
    """A machine: a namespace with a NetlinkKernel in it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(netns.create())
        self.directory = directory
        self.kernel = self.inside(lambda: NetlinkKernel(directory))

    def overlay(self, namespace: str) -> Space:
        """Open an overlay network's namespace, as a person would."""
        return Space(os.open(self.directory / namespace, os.O_RDONLY))

    def close(self) -> None:
        """End it and its overlay namespaces."""
        self.kernel.close()
        if self.directory.exists():
            for pin in self.directory.iterdir():
                netns.unpin(pin)
        super().close()


def in_mount_namespace(work: Callable[[], _T], *preparation: str) -> _T:
    """Do *work* in a mount namespace of its own, after the shell commands of *preparation*."""

    def apart() -> _T:
        os_unshare(0x00020000)
        for command in preparation:
            subprocess.run(["sh", "-c", command], check=True)
        return work()

    return netns._apart(apart)


def os_unshare(flags: int) -> None:
    """What os.unshare is from Python 3.12 on."""
    netns._check(netns._libc.unshare(flags), "unshare")


def eventually(holds: Callable[[], bool]) -> bool:
    """Tell whether *holds* within the time that a busy machine's kernel takes to finish in the background."""
    end = time.monotonic() + 30
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
