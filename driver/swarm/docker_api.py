"""The engine's API, as far as it is about Swarm and networks. Never called while the engine waits for us.

Paths without a version mean the engine's own newest one; the few fields read here have been the
same from 20.10 to 29 (https://docs.docker.com/reference/api/engine/).
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

log = logging.getLogger(__name__)

DEFAULT_SOCKET: Final = Path("/run/docker.sock")
_SECONDS: Final = 2.0
_MAX_ANSWER: Final = 8 << 20
_LIST_SECONDS: Final = 10.0
_MAX_LIST: Final = 256 << 20
_SETTING: Final = "PYOVERLAY_DOCKER_SOCKET names the right socket"
_STATES: Final = frozenset({"inactive", "pending", "active", "error", "locked"})


class EngineAway(Exception):
    """The engine did not answer, or its answer is of no use."""


class Leadership(Enum):
    """Whether this node leads its Swarm."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    """The engine is away, or the managers have no quorum: the last known answer stands."""


@dataclass(frozen=True, slots=True)
class SwarmFacts:
    """What the engine says about its Swarm."""

    state: str = ""
    """LocalNodeState: inactive, pending, active, error or locked; empty before the engine was asked."""
    node: str = ""
    address: str = ""
    manager: bool = False
    managers: tuple[str, ...] = ()
    """Hosts of all managers, addresses as a rule, without ports."""
    port: int | None = None
    """The Swarm's UDP port for VXLAN, which only managers are told."""
    version: tuple[int, int] = (0, 0)
    """The engine's, its first two numbers; zeros when it does not say."""

    @property
    def member(self) -> bool | None:
        """Whether this node is in a Swarm; None when the engine cannot tell at the moment."""
        return {"active": True, "inactive": False}.get(self.state)


class DockerApi:
    """A client of the engine on its Unix socket; for any number of threads."""

    def __init__(self, path: Path = DEFAULT_SOCKET, plugin: str = "") -> None:
        """*plugin* is the id of the managed plugin that asks: an engine without it is another one."""
        self._path = path
        self._plugin = plugin
        self._recognised = False

    @property
    def path(self) -> Path:
        """The socket."""
        return self._path

    def vouches(self) -> bool:
        """Whether the engine is known to be the one that this plugin serves; raise EngineAway."""
        if not self._plugin:
            return False
        status, _ = self._request(f"/plugins/{self._plugin}/json", _SECONDS, _MAX_ANSWER)
        if status == 404:
            raise EngineAway(
                f"{self._path}: the engine there does not have this plugin ({self._plugin[:12]}), so it is "
                f"another one; {_SETTING}"
            )
        self._recognised = True
        return status == 200

    def info(self) -> SwarmFacts:
        """Ask what the Swarm is; raise EngineAway when there is no answer."""
        status, answer = self._get("/info")
        swarm = answer.get("Swarm")
        if status != 200 or not isinstance(swarm, dict) or swarm.get("LocalNodeState") not in _STATES:
            raise EngineAway(f"{self._path}: /info answered {status} without a Swarm state")
        managers = [m.get("Addr") for m in swarm.get("RemoteManagers") or [] if isinstance(m, dict)]
        return SwarmFacts(
            state=swarm["LocalNodeState"],
            node=str(swarm.get("NodeID") or ""),
            address=str(swarm.get("NodeAddr") or ""),
            manager=swarm.get("ControlAvailable") is True,
            managers=tuple(sorted({host_of(m) for m in managers if isinstance(m, str) and m})),
            port=_data_path_port(swarm.get("Cluster")),
            version=_version(answer.get("ServerVersion")),
        )

    def leadership(self, facts: SwarmFacts) -> Leadership:
        """Ask whether the node of *facts* leads the Swarm; never raises."""
        if facts.member is False or (facts.member and not facts.manager):
            return Leadership.NO
        if not facts.node:
            return Leadership.UNKNOWN
        try:
            status, answer = self._get(f"/nodes/{facts.node}")
        except EngineAway:
            return Leadership.UNKNOWN
        if status != 200 or answer.get("ID") != facts.node:
            return Leadership.UNKNOWN
        manager = answer.get("ManagerStatus")
        leads = isinstance(manager, dict) and manager.get("Leader") is True
        return Leadership.YES if leads else Leadership.NO

    def known_networks(self, networks: Collection[str]) -> frozenset[str]:
        """Return those of *networks*, which are ids, that the engine knows; raise EngineAway.

        A worker knows the Swarm's networks that it uses, a manager all. For one that is not
        known, the engine will call CreateNetwork before anything else.

        Asks for the list: Engine 29 (API 1.52) answers 404 about one network when the Swarm's leader has not
        yet allocated another (moby daemon/server/router/network/network_routes.go: getNetwork).
        """
        listed = self.list("networks", id=networks)
        return frozenset(networks).intersection(str(one.get("Id")) for one in listed)

    def network(self, network: str) -> Mapping[str, Any]:
        """Return what the engine says about a network, this host's containers included.

        Nothing for one that it does not know. Raises EngineAway when there is no answer.
        """
        status, answer = self._get(f"/networks/{network}")
        return answer if status == 200 else {}

    def sandbox(self, container: str) -> str:
        """Return the path of a container's network namespace; nothing when it has none.

        Raises EngineAway when there is no answer, as for a container that is being started.
        """
        _, answer = self._get(f"/containers/{container}/json")
        return str((answer.get("NetworkSettings") or {}).get("SandboxKey") or "")

    def plugin_name(self, plugin: str) -> str:
        """Return the name by which networks call the managed plugin *plugin*, an id; raise EngineAway."""
        for one in self.list("plugins"):
            if one.get("Id") == plugin:
                return str(one.get("Name"))
        raise EngineAway(f"{self._path}: /plugins has no plugin {plugin or 'without an id'}")

    def list(self, what: str, **filters: Collection[str]) -> list[Mapping[str, Any]]:
        """Ask for all "services", "tasks", "networks" or "plugins" that pass *filters*; raise EngineAway.

        Only a manager of a Swarm with a quorum knows of services and tasks.
        """
        chosen = json.dumps({name.replace("_", "-"): sorted(values) for name, values in filters.items()})
        path = f"/{what}?filters={quote(chosen)}" if filters else f"/{what}"
        status, answer = self._ask(path, _LIST_SECONDS, _MAX_LIST)
        if status != 200 or not isinstance(answer, list):
            raise EngineAway(f"{self._path}: /{what} answered {status}")
        return [item for item in answer if isinstance(item, dict)]

    def events(self, *kinds: str) -> Events:
        """Listen to the engine's events about objects of *kinds*; raise EngineAway."""
        self._recognise()
        return Events(self._path, f"/events?filters={quote(json.dumps({'type': sorted(kinds)}))}")

    def _get(self, path: str) -> tuple[int, Mapping[str, Any]]:
        status, answer = self._ask(path, _SECONDS, _MAX_ANSWER)
        return status, answer if isinstance(answer, dict) else {}

    def _ask(self, path: str, seconds: float, size: int) -> tuple[int, object]:
        self._recognise()
        return self._request(path, seconds, size)

    def _recognise(self) -> None:
        """Make sure that it is our engine, again after each failure: another one may answer then."""
        if not self._recognised:
            self.vouches()

    def _request(self, path: str, seconds: float, size: int) -> tuple[int, object]:
        connection = _UnixConnection(self._path, seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            answer = json.loads(response.read(size))
        except FileNotFoundError:
            self._recognised = False
            raise EngineAway(f"{self._path}: there is no such socket; {_SETTING}") from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            self._recognised = False
            raise EngineAway(f"{self._path}: {path}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if response.status == 403:
            _tell_of_denial(path.partition("?")[0].split("/")[1], str(answer))
        return response.status, answer


@cache
def _tell_of_denial(what: str, answer: str) -> None:
    """Warn, once for each part of the API, that an authorisation plugin denies it."""
    log.warning(
        "the engine denies GET /%s: %s. What does not depend on it goes on; allow GET on /events, /info, "
        "/networks, /nodes, /plugins, /services and /tasks",
        what,
        answer[:300],
    )


class Events:
    """The engine's events. One thread listens; any thread may close."""

    def __init__(self, path: Path, request: str) -> None:
        self._connection = _UnixConnection(path, _SECONDS)
        self._name = f"{path}: /events"
        try:
            self._connection.request("GET", request)
            self._socket = self._connection.sock
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise EngineAway(f"{self._name} answered {self._response.status}")
            self._socket.settimeout(None)  # silence is normal
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise EngineAway(f"{self._name}: {type(error).__name__}: {error}") from None

    def await_event(self) -> None:
        """Wait for the next event; raise EngineAway when there will be none."""
        try:
            line = self._response.readline()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineAway(f"{self._name}: {type(error).__name__}: {error}") from None
        if not line:
            raise EngineAway(f"{self._name}: the stream was closed")

    def close(self) -> None:
        """Close the stream: a waiting thread gets an EngineAway."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._response.close()  # has the socket to itself when the engine will close the connection


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("docker", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connect to the path instead of to the host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _version(said: object) -> tuple[int, int]:
    """Read "28.5.2", "20.10.24+dfsg1" or "29.6.0-rc.1"; what is none, as a build of one's own, is zeros."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\b", said, re.ASCII) if isinstance(said, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _data_path_port(cluster: object) -> int | None:
    """Return what ``docker swarm init --data-path-port`` has set; None when the engine does not say."""
    port = cluster.get("DataPathPort") if isinstance(cluster, dict) else None
    return port if type(port) is int and port in range(1, 65536) else None


def host_of(address: str) -> str:
    """Return the host of "host:port", "[v6]:port", or of an address that has no port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.rpartition(":")
    return host if colon and ":" not in host else address
