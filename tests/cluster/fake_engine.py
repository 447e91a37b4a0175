"""The few paths of Docker's API that tell of a Swarm, on a Unix socket."""

from __future__ import annotations

import json
import queue
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


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
        self.port: object = 4789
        """What a manager says of --data-path-port."""
        self.version: object = "28.5.2"
        self.unallocated = False
        """Whether a network waits for the allocator: Engine 29 then denies others that it is asked for."""
        self.networks: set[str] = set()
        self.plugins: set[str] = set()
        self.denied: set[str] = set()
        """What an authorisation plugin denies: "info", "nodes" and so on."""
        self.lists: dict[str, list[Any]] = {"networks": [], "services": [], "tasks": []}
        """What the paths without an id answer, on a manager."""
        self.events: queue.Queue[str] = queue.Queue()
        """What is put in is told; an empty one ends the stream."""
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
        kind, _, name = path.partition("?")[0][1:].partition("/")
        if kind in self.denied:
            return 403, {"message": "authorization denied by plugin gate: no"}
        if kind in ("info", "plugins", "networks"):
            return self._own(kind, name, path)
        if self.state != "active" or not self.manager:
            return 503, {"message": "This node is not a swarm manager."}
        if not self.quorum:
            return 500, {"message": "rpc error: code = Unknown desc = The swarm does not have a leader."}
        if kind in self.lists:
            return 200, [one for one in self.lists[kind] if _passes(one, path)]
        return self._node(path)

    def _own(self, kind: str, name: str, path: str) -> tuple[int, Any]:
        """What every engine answers, in a Swarm or not."""
        if kind == "info":
            return 200, {"ServerVersion": self.version, "Swarm": self._swarm()}
        if kind == "networks":
            return self._networks(name, _filters(path).get("id"))
        found = name.removesuffix("/json") in self.plugins
        return (200, {"Id": name}) if found else (404, {"message": f"plugin {name} not found"})

    def _networks(self, name: str, ids: list[str] | None) -> tuple[int, Any]:
        if not name:
            # As the engine does it, a part of an id is enough.
            wanted = [{"Id": known} for known in self.networks if any(one in known for one in ids or [])]
            return 200, self.lists["networks"] if ids is None else wanted
        known = name in self.networks and not self.unallocated
        return (200, {"Id": name}) if known else (404, {"message": f"network {name} not found"})

    def _node(self, path: str) -> tuple[int, Any]:
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
            **({"Cluster": {"DataPathPort": self.port}} if self.manager else {}),
            "RemoteManagers": [{"NodeID": f"m{i}", "Addr": a} for i, a in enumerate(self.managers)],
        }


def _passes(listed: Any, path: str) -> bool:
    """Tell whether the filter "desired-state" lets an object through, as the engine's API describes it."""
    return listed.get("DesiredState") in _filters(path).get("desired-state", [listed.get("DesiredState")])


def _filters(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(parse_qs(urlsplit(path).query).get("filters", ["{}"])[0])
    return found


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    engine: FakeEngine


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        engine = self.server.engine
        time.sleep(engine.delay)
        if self.path.startswith("/events"):
            self._tell(engine)
            return
        status, answer = engine.answer(self.path)
        body = engine.garbage or json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            return  # the client did not wait

    def _tell(self, engine: FakeEngine) -> None:
        engine.calls.append(self.path)
        self.send_response(200)
        self.end_headers()
        while (line := engine.events.get()) and not engine.garbage:
            try:
                self.wfile.write(f"{line}\n".encode())
            except OSError:
                return

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        return
