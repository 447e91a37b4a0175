"""One lab host: a real Docker engine in namespaces of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any

from . import packages
from .busybox import busybox_tar
from .plugins import put_plugin
from .spaces import CommandError, Process, Spaces, wait_for

SOCKET = "/run/docker.sock"


class _SocketConnection(HTTPConnection):
    """HTTP over the engine's Unix socket, opened through /proc so that no process has to enter the host."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class Host:
    """A machine of the lab. `address` is its underlay address, `interface` its one network card."""

    interface = "eth0"

    def __init__(  # noqa: PLR0917 - made by Lab only
        self, name: str, engine: str, address: str, folder: Path, spaces: Spaces, registry: str
    ) -> None:
        self.name = name
        self.engine = engine
        self.address = address
        self.address6: str | None = None
        self.folder = folder
        self.spaces = spaces
        self._registry = registry
        self._engine: Process | None = None
        self._daemon: subprocess.Popen[Any] | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} engine {self.engine}>"

    def state(self) -> dict[str, Any]:
        """What a later process needs to take over the host of a detached lab."""
        return {
            "name": self.name,
            "engine": self.engine,
            "address": self.address,
            "address6": self.address6,
            "holder": [self.spaces.holder.pid, self.spaces.holder.start],
            "dockerd": [self._engine.pid, self._engine.start] if self._engine else None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], folder: Path, spaces_name: str, registry: str) -> Host:
        """The host that `state()` described."""
        spaces = Spaces(spaces_name, Process(*state["holder"]))
        host = cls(state["name"], state["engine"], state["address"], folder, spaces, registry)
        host.address6 = state["address6"]
        host._engine = Process(*state["dockerd"]) if state["dockerd"] else None
        return host

    # --- processes --------------------------------------------------------------------------------------

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of this host's processes: its own engine's programs come first in PATH."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")}
        own["PATH"] = (
            f"{packages.engine_path(self.engine)}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ['PATH']}"
        )
        return {**own, **(extra or {})}

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a process in the host. The Popen is that process itself: terminate() and wait() mean it."""
        return self.spaces.popen(argv, env=self.environment(env), cwd=cwd, **options)

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
        """Run a command in the host; CommandError (with all that it printed) on failure or time-out."""
        whole = self.environment(env)
        return self.spaces.run(argv, check=check, timeout=timeout, input=input, env=whole, cwd=cwd)

    def docker(
        self,
        *args: str,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002 - as subprocess.run has it
    ) -> str:
        """`docker ARGS` with the host's own client and engine; what it printed, stripped."""
        return self.run(["docker", *args], check=check, timeout=timeout, input=input).stdout.strip()

    def path(self, inside: str | Path) -> Path:
        """The host's file `inside` as a path that this process can open."""
        return self.spaces.path(inside)

    # --- the engine -------------------------------------------------------------------------------------

    @property
    def engine_pid(self) -> int:
        """The engine's process id as seen from outside the host."""
        if self._engine is None:
            raise RuntimeError(f"the engine of {self.name} has not been started")
        return self._engine.pid

    @property
    def engine_running(self) -> bool:
        return self._engine is not None and self._engine.alive

    def start_engine(self, timeout: float = 60, options: Sequence[str] = ()) -> None:
        """Start dockerd (containerd and the rest come from it) and wait until its API answers."""
        argv = ["dockerd", "--exec-root=/run/docker", "--pidfile=/run/docker.pid", f"--host=unix://{SOCKET}"]
        argv += ["--storage-driver=overlay2", f"--insecure-registry={self._registry}", "--shutdown-timeout=5"]
        argv += options
        with open(self.folder / "engine.log", "a") as log:
            none = subprocess.DEVNULL
            self._daemon = self.popen(argv, cgroups=True, stdin=none, stdout=log, stderr=subprocess.STDOUT)
        self._engine = Process.of(self._daemon.pid)
        if not wait_for(lambda: self.engine_answers() or not self.engine_running, timeout, every=0.03):
            raise CommandError(self.name, argv, f"no answer after {timeout} s", "", self.engine_log()[-4000:])
        if not self.engine_running:
            raise CommandError(self.name, argv, "the engine ended", "", self.engine_log()[-4000:])

    def engine_answers(self) -> bool:
        """True when the engine's API is up."""
        try:
            return self.api("GET", "/_ping", timeout=2) == b"OK"
        except (OSError, HTTPException, CommandError):
            return False

    def stop_engine(self, kill: bool = False, timeout: float = 40) -> None:
        """Stop dockerd as a service manager does (SIGTERM); `kill` sends SIGKILL: containers stay alive."""
        if self._engine is None:
            return
        self._engine.kill(9 if kill else 15)
        gone = self._engine.wait(timeout)
        if self._daemon is not None and gone:
            self._daemon.wait(5)
            self._daemon = None
        if not gone:
            raise CommandError(
                self.name, ["stop dockerd"], f"alive after {timeout} s", "", self.engine_log()[-4000:]
            )

    def engine_log(self) -> str:
        """All that dockerd has written since the host came up."""
        log = self.folder / "engine.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def api(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> bytes:
        """The body of the answer to one request to the engine's API; CommandError from status 400 on."""
        connection = _SocketConnection(self.path(SOCKET), timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise CommandError(self.name, [method, path], response.status, "", text.decode(errors="replace"))
        return text

    # --- images and plugins -----------------------------------------------------------------------------

    def load_image(self, tar: Path) -> str:
        """`docker load` of an image archive."""
        return self.docker("load", "--input", str(tar))

    def load_busybox(self) -> None:
        """The image "busybox:latest", the same id on every host."""
        self.load_image(busybox_tar())

    def put_plugin(  # noqa: PLR0917 - all but two have defaults
        self,
        rootfs: Path,
        config: Path | Mapping[str, Any],
        name: str = "pyoverlay:latest",
        enable: bool = True,
        settings: Mapping[str, str] | None = None,
        whole: bool = False,
        timeout: float = 120,
    ) -> None:
        """`docker plugin create`, `set` and `enable`; `rootfs` is a folder or a tar archive.

        `whole` hands the engine the whole root file system (needed before `docker plugin push`, and slow).
        """
        put_plugin(self, rootfs, config, name, whole=whole, timeout=timeout)
        if settings:
            self.docker("plugin", "set", name, *(f"{key}={value}" for key, value in settings.items()))
        if enable:
            self.docker("plugin", "enable", name, timeout=timeout)
