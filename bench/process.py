"""The plugin's own process without an engine: started, called over its socket, and looked at."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.scene import ROOT
from driver.kernel import netns
from tests.contract.process import children, head, read

VTEP = "192.0.2.1"
ENTRYPOINT: list[str] = json.loads((ROOT / "config.json").read_text())["entrypoint"]
"""What the engine starts in the plugin's root file system."""
PATIENCE = 30
"""Seconds after which an answer will not come any more."""


class Plugin:
    """`pyoverlay serve`, as an engine of a Swarm has it; socket, state and namespaces are in a folder."""

    def __init__(self, folder: Path, store: str, vtep: str = VTEP, *prefix: str) -> None:
        """*prefix* is a command that starts another, for example in a namespace."""
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "pyoverlay.sock"
        self.netns = folder / "run" / "netns"
        self._log = folder / "log"
        self._argv = [*prefix, sys.executable, *ENTRYPOINT[1:]]
        self._environ = {
            "PYOVERLAY_SCOPE": "global",
            "PYOVERLAY_STORE": store,
            "PYOVERLAY_VTEP": vtep,
            "PYOVERLAY_SOCKET": str(self.socket),
            "PYOVERLAY_STATE_DIR": str(folder / "state"),
            "PYOVERLAY_RUN_DIR": str(folder / "run"),
            "PYOVERLAY_SWARM_DIR": str(folder / "swarm"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Plugin:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pin in self.netns.glob("*"):
            netns.unpin(pin)

    def start(self) -> float:
        """Start it; return the seconds until it has answered a first call."""
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, cwd=ROOT, env=self._environ, stdout=log, stderr=log)
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.perf_counter() < began + PATIENCE, "the plugin does not answer"
            time.sleep(0.002)
        return time.perf_counter() - began

    def stop(self) -> None:
        """End it as the engine does."""
        if self._process:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def call(self, method: str, body: object = None) -> Any:
        """Make a call; fail with what the plugin said."""
        data = b"" if body is None else json.dumps(body).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.socket))
            client.sendall(head(method, len(data)) + data)
            status, answer = read(client)
        assert status == 200, f"{method}: {answer.decode()}"
        return json.loads(answer)

    def memory(self) -> float:
        """MiB of its Python processes: PSS as if no other process on the machine had the same files open."""
        pids = self._pids()
        return (sum(_own(pid) for pid in pids) + max(resident(pid, "RssFile") for pid in pids)) / 1024

    def cpu(self) -> float:
        """Seconds of CPU that its threads have used."""
        tasks = (task for pid in self._pids() for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def _pids(self) -> list[int]:
        assert self._process
        return [self._process.pid, *children(self._process.pid)]

    def _answers(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return bool(self.call("Plugin.Activate"))
        return False


def _own(pid: int) -> int:
    """KiB of anonymous memory; what several processes share is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def resident(pid: int, field: str = "VmRSS") -> int:
    """KiB of one kind of memory (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
