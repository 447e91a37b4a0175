"""The few paths of Docker's API that tell of a Swarm, on a Unix socket."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


class FakeEngine:
    """A node of a Swarm whose state the test sets; `quorum=False` answers as a manager without one."""

    def __init__(self, path: Path, node: str = "node1", address: str = "127.0.0.1") -> None:
        self.path = path
        self.node = node
        self.address = address
        self.state = "active"
        self.manager = True
        self.leader = True
        self.quorum = True
        self.managers: list[str] = [f"{address}:2377"]
        self.networks: set[str] = set()
        self.delay = 0.0
        self.garbage = b""
        self.calls: list[str] = []
        self._server: _Server | None = None

    def start(self) -> FakeEngine:
        self.path.unlink(missing_ok=True)
        self._server = _Server(str(self.path), _Handler)
        self._server.engine = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="engine", daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str) -> tuple[int, Any]:
        self.calls.append(path)
        if path == "/info":
            return 200, {"Swarm": self._swarm()}
        if path.startswith("/networks/"):
            network = path.removeprefix("/networks/")
            known = network in self.networks
            return (200, {"Id": network}) if known else (404, {"message": f"network {network} not found"})
        if self.state != "active" or not self.manager:
            return 503, {"message": "This node is not a swarm manager."}
        if not self.quorum:
            return 500, {"message": "rpc error: code = Unknown desc = The swarm does not have a leader."}
        if path != f"/nodes/{self.node}":
            return 404, {"message": "node not found"}
        status = {"Reachability": "reachable", "Addr": f"{self.address}:2377"}
        return 200, {
            "ID": self.node,
            "ManagerStatus": {**status, **({"Leader": True} if self.leader else {})},
        }

    def _swarm(self) -> dict[str, Any]:
        if self.state != "active":
            return {"NodeID": "", "NodeAddr": "", "LocalNodeState": self.state, "ControlAvailable": False}
        return {
            "NodeID": self.node,
            "NodeAddr": self.address,
            "LocalNodeState": self.state,
            "ControlAvailable": self.manager,
            "RemoteManagers": [{"NodeID": f"m{i}", "Addr": a} for i, a in enumerate(self.managers)],
        }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    engine: FakeEngine


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        engine = self.server.engine
        time.sleep(engine.delay)
        status, answer = engine.answer(self.path)
        body = engine.garbage or json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            return  # the client did not wait

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        return
