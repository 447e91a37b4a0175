"""The namespaces of one lab host, and how to start processes in them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .holder import CLONE_NEWPID, cgroup_mounts

HOLDER = Path(__file__).with_name("holder.py")
_libc = ctypes.CDLL(None, use_errno=True)


class CommandError(Exception):
    """A command in the lab failed or took too long; the text says all that it printed."""

    def __init__(self, where: str, argv: Sequence[str], code: int | str, stdout: str, stderr: str) -> None:
        super().__init__(f"on {where}: {' '.join(argv)}: {code}\n{stdout}{stderr}".rstrip())
        self.argv = list(argv)
        self.returncode = code
        self.stdout = stdout
        self.stderr = stderr


def started_at(pid: int) -> int | None:
    """The kernel's start time of a process: with the pid it names one process for ever. None if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be taken for another one that got its number later."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process:
        start = started_at(pid)
        if start is None:
            raise ProcessLookupError(f"process {pid} is gone")
        return cls(pid, start)

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.start

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> bool:
        """True once it is gone."""
        return wait_for(lambda: not self.alive, timeout)


def wait_for(condition: Callable[[], object], timeout: float, every: float = 0.02) -> bool:
    """Poll until `condition()` is true; False when `timeout` seconds were not enough."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


@contextmanager
def _children_born_in(pid: int) -> Iterator[None]:
    """What this thread forks meanwhile belongs to the PID namespace of process `pid`.

    So a Popen is the very process in the host, not a helper in front of it: signals and exit codes are real.
    """

    def enter(path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(handle, CLONE_NEWPID) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
        finally:
            os.close(handle)

    enter(f"/proc/{pid}/ns/pid")
    try:
        yield
    finally:
        enter("/proc/self/ns/pid")


def _overlay(lower: str, folder: Path) -> tuple[str, str, str]:
    """What the host writes below `lower` lands in `folder`, never in the machine's own files."""
    upper, work = (folder / f"{part}{lower.replace('/', '-')}" for part in ("upper", "work"))
    upper.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    return lower, str(upper), str(work)


class Spaces:
    """The namespaces held by one holder process; closing them ends every process inside."""

    def __init__(self, name: str, holder: Process, lifeline: int | None = None) -> None:
        self.name = name
        self.holder = holder
        self._lifeline = lifeline
        self._outer: subprocess.Popen[str] | None = None
        self._children: list[subprocess.Popen[Any]] = []

    @classmethod
    def create(
        cls,
        name: str,
        *,
        hostname: str,
        folder: Path,
        network: bool = True,
        nameserver: str | None = "127.0.0.1",
        binds: Sequence[tuple[str, str]] = (),
        detached: bool = False,
    ) -> Spaces:
        """Start a holder and wait until its namespaces are ready; `folder` takes the files that it writes."""
        log = folder / "holder.log"
        spec = {
            "name": name,
            "hostname": hostname,
            "network": network,
            "nameserver": nameserver,
            "overlays": [_overlay(lower, folder) for lower in ("/etc", "/var/lib")],
            "binds": binds,
            "detached": detached,
            "owner": [os.getpid(), started_at(os.getpid())],
        }
        reader, lifeline = os.pipe2(os.O_CLOEXEC)
        argv = [sys.executable, "-I", "-S", str(HOLDER), json.dumps(spec)]
        stdin = subprocess.DEVNULL if detached else reader
        with open(log, "a") as errors:
            outer = subprocess.Popen(
                argv, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        os.close(reader)
        assert outer.stdout is not None
        told = [outer.stdout.readline().strip() for _ in range(2)]
        outer.stdout.close()
        pid = next((int(line.split()[1]) for line in told if line.startswith("pid ")), 0)
        if "ready" not in told:
            os.close(lifeline)
            outer.kill()
            outer.wait()
            raise RuntimeError(f"{name} did not come up: {told} {log.read_text()}")
        made = cls(name, Process.of(pid), lifeline)
        made._outer = outer
        if detached:
            os.close(lifeline)
            made._lifeline = None
        return made

    @property
    def alive(self) -> bool:
        return self.holder.alive

    def path(self, inside: str | Path) -> Path:
        """The host's file `inside` as this process can open it."""
        return Path(f"/proc/{self.holder.pid}/root") / str(inside).lstrip("/")

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        cgroups: bool = False,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start `argv` inside; takes subprocess.Popen's own options."""
        join = self.join_cgroups() if cgroups else []
        enter = ["nsenter", f"--target={self.holder.pid}", "--mount", "--uts", "--net", "--ipc", "--cgroup"]
        command = [*join, *enter, "--", "env", f"--chdir={cwd}", *(str(part) for part in argv)]
        with _children_born_in(self.holder.pid):
            child = subprocess.Popen(command, env=env, start_new_session=True, **options)
        self._children = [old for old in self._children if old.poll() is None] + [child]
        return child

    def join_cgroups(self) -> list[str]:
        """A command prefix that moves what follows into the host's control groups, where engines must be."""
        lines = Path(f"/proc/{self.holder.pid}/cgroup").read_text().splitlines()
        mounted = {tuple(sorted(options.split(","))): point for point, _, options in cgroup_mounts()}
        unified = next((point for point, kind, _ in cgroup_mounts() if kind == "cgroup2"), None)
        groups = []
        for _, controllers, path in (line.split(":", 2) for line in lines):
            point = mounted.get(tuple(sorted(controllers.split(",")))) if controllers else unified
            if point is not None:
                groups.append(f"{point}{path}/cgroup.procs")
        return [
            "sh",
            "-c",
            'while [ "$1" != -- ]; do echo 0 >"$1"; shift; done; shift; exec "$@"',
            "sh",
            *groups,
            "--",
        ]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002 - as subprocess.run has it
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` inside and wait; CommandError when it fails or `timeout` seconds were not enough."""
        pipe, words = subprocess.PIPE, [str(part) for part in argv]
        stdin = subprocess.DEVNULL if input is None else pipe
        process = self.popen(argv, env=env, cwd=cwd, stdin=stdin, stdout=pipe, stderr=pipe, text=True)
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, stderr = process.communicate()
                raise CommandError(self.name, words, f"no end after {timeout} s", stdout, stderr) from None
        if check and process.returncode != 0:
            raise CommandError(self.name, words, process.returncode, stdout, stderr)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def ip(self, *lines: str) -> None:
        """Feed lines to `ip -batch` in the network namespace, but outside the others: pids are ours."""
        argv = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "ip", "-batch", "-"]
        done = subprocess.run(
            argv, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CommandError(self.name, ["ip", *lines], done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        """End the holder, and with it everything inside."""
        self.holder.kill()
        # PID 1 cannot go before every process of its namespace has been reaped, and ours are ours to reap.
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
            for pipe in (child.stdin, child.stdout, child.stderr):
                with suppress(OSError):  # what is left to be written has no reader any more
                    if pipe is not None:
                        pipe.close()
        self._children = []
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._outer is not None:
            self._outer.wait()
            self._outer = None
        self.holder.wait(10)
