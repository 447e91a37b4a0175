"""What the control plane's tests stand on: etcd processes, a relay that can fail, hosts that listen."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import requests

from driver.cluster.backend import ControlPlane
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.ledger.claims import Put, Withdraw
from driver.cluster.ledger.codec import ROOT, endpoint_key
from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.wish.records import EndpointRecord, NodeRecord, Publication, ServiceRecord, View
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId
from tests.cluster.relay import Relay, free_port

NET = NetworkId("n1")
NET2 = NetworkId("n2")


def wait_until(fact: Callable[[], object], timeout: float = 30.0) -> float:
    """Wait until *fact* holds; return how long it took, fail when it does not come.

    The patience is for a busy machine, and costs nothing when all is well.
    """
    start = time.monotonic()
    while not fact():
        assert time.monotonic() - start < timeout, "it did not come about"
        time.sleep(0.002)
    return time.monotonic() - start


def node(name: str, number: int = 1) -> NodeRecord:
    return NodeRecord(NodeId(name), ip_address(f"192.0.2.{number}"))


def endpoint(owner: str, number: int, network: NetworkId = NET) -> EndpointRecord:
    high, low = divmod(number, 250)
    return EndpointRecord(
        network=network,
        address=ip_address(f"10.0.{high}.{low + 1}"),
        mac=Mac(f"02:42:0a:00:{high:02x}:{low + 1:02x}"),
        node=NodeId(owner),
        endpoint=EndpointId(f"{owner}e{number}"),
    )


def service(number: int, *backends: int, network: NetworkId = NET) -> ServiceRecord:
    """A service whose address, and those of its backends, end in these numbers."""
    found = tuple(ip_address(f"10.0.0.{backend}") for backend in backends)
    return ServiceRecord(network, ip_address(f"10.0.9.{number}"), f"s{number}", found)


class Host:
    """A plane with its wish and all the views that it was given."""

    def __init__(self, name: str, plane: ControlPlane) -> None:
        self.name = name
        self.plane = plane
        self.wish = Publication()
        self.views: list[View] = []
        self.view = View()
        self.seen_at: dict[str, float] = {}
        self.threads: set[str] = set()

    def on_view(self, view: View) -> None:
        self.threads.add(threading.current_thread().name)
        self.views.append(view)
        self.view = view

    def start(self) -> Host:
        self.plane.start(self.on_view)
        return self

    def publish(self, **changes: Any) -> None:
        self.wish = replace(self.wish, **changes)
        self.plane.publish(self.wish)

    def join(self, *endpoints: EndpointRecord, networks: Sequence[NetworkId] = (NET,)) -> None:
        """Be there, with these endpoints, following these networks."""
        self.publish(node=node(self.name), endpoints=frozenset(endpoints), networks=frozenset(networks))

    def lead(self, *services: ServiceRecord, networks: Sequence[NetworkId] = (NET,)) -> None:
        """Be the Swarm's leader, with these services in these networks."""
        self.publish(offer={n: frozenset(s for s in services if s.network == n) for n in networks})

    def services(self, network: NetworkId = NET) -> set[ServiceRecord] | None:
        """What the leader says of a network; None while nobody does."""
        found = self.view.services.get(network)
        return None if found is None else set(found.values())

    def published(self, timeout: float = 30.0) -> bool:
        """Wait until all is said, also when the store has yet to come."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.plane.wait_published(deadline - time.monotonic()):
                return True
            time.sleep(0.005)
        return False

    def rows(self, network: NetworkId = NET) -> Mapping[Any, EndpointRecord]:
        return self.view.endpoints.get(network, {})

    def sees(self, record: EndpointRecord) -> bool:
        return self.rows(record.network).get(record.address) == record

    def sees_none(self, record: EndpointRecord) -> bool:
        return record.network in self.view.endpoints and record.address not in self.rows(record.network)


class Bench(Protocol):
    """A store under test, and the ways in which the world can treat it."""

    def plane(self, name: str, **options: Any) -> ControlPlane: ...
    def away(self, away: bool) -> None: ...
    def replace(self) -> None: ...
    def put(self, key: str, value: str) -> None: ...
    def delete(self, key: str) -> None: ...
    def dump(self) -> dict[str, str]: ...
    def close(self) -> None: ...


class MemoryBench:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def plane(self, name: str, **options: Any) -> ControlPlane:
        return MemoryControlPlane(NodeId(name), self.store)

    def away(self, away: bool) -> None:
        self.store.set_away(away)

    def replace(self) -> None:
        self.store.replace()

    def put(self, key: str, value: str) -> None:
        self.store.do(Put(key, value))

    def delete(self, key: str) -> None:
        self.store.do(Withdraw(key, self.dump()[key]))

    def dump(self) -> dict[str, str]:
        return self.store.dump()

    def close(self) -> None:
        return


class EtcdBench:
    """One real member behind a relay."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._count = 0
        self.member = self._start()
        self.relay = Relay(self.member.port)

    def _start(self) -> EtcdMember:
        self._count += 1
        (member,) = start_members(self._binary, self._folder / f"store{self._count}", 1)
        return member

    def plane(self, name: str, **options: Any) -> ControlPlane:
        return EtcdControlPlane(NodeId(name), lambda: [self.relay.url], **options)

    def away(self, away: bool) -> None:
        self.relay.cut() if away else self.relay.mend()

    def replace(self) -> None:
        old, self.member = self.member, self._start()
        self.relay.target = self.member.port
        old.kill()

    def put(self, key: str, value: str) -> None:
        self.member.call("kv/put", key=b64(key), value=b64(value))

    def delete(self, key: str) -> None:
        self.member.call("kv/deleterange", key=b64(key))

    def dump(self) -> dict[str, str]:
        return self.member.dump()

    def close(self) -> None:
        self.relay.close()
        self.member.kill()


@dataclass
class EtcdMember:
    """A real etcd process of a test."""

    command: list[str]
    folder: Path
    port: int
    address: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin"},
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def wipe(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, path: str, *, timeout: float = 2, **body: Any) -> dict[str, Any]:
        """Ask etcd's JSON gateway; *timeout* in seconds."""
        response = requests.post(f"{self.url}/v3/{path}", json=body, timeout=timeout)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def ready(self) -> bool:
        try:
            return bool(requests.get(f"{self.url}/health", timeout=0.5).json()["health"] == "true")
        except (requests.RequestException, ValueError):
            return False

    def is_leader(self) -> bool:
        try:
            status = self.call("maintenance/status")
        except requests.RequestException:
            return False
        return bool(status["leader"] == status["header"]["member_id"])

    def dump(self) -> dict[str, str]:
        answer = self.call("kv/range", key=b64(ROOT), range_end=b64(ROOT[:-1] + "0"))
        return {unb64(kv["key"]): unb64(kv.get("value", "")) for kv in answer.get("kvs", [])}


def start_members(binary: Path, folder: Path, count: int, address: str = "127.0.0.1") -> list[EtcdMember]:
    """Start a cluster of *count* members and wait until it serves clients, on *address*."""
    ports = [(free_port(), free_port()) for _ in range(count)]
    cluster = ",".join(f"m{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
    token = str(time.time_ns())
    members = []
    for i, (port, peer) in enumerate(ports):
        home = folder / f"m{i}"
        command = [
            str(binary), "--name", f"m{i}", "--data-dir", str(home / "data"), "--unsafe-no-fsync",
            "--listen-client-urls", f"http://{address}:{port}",
            "--advertise-client-urls", f"http://{address}:{port}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", cluster, "--initial-cluster-token", token,
            "--log-level", "warn",
            *(("--heartbeat-interval", "20", "--election-timeout", "100") if count == 1 else ()),
        ]  # fmt: skip
        members.append(EtcdMember(command, home, port, address))
    for member in members:
        member.start()
    try:
        for member in members:
            wait_until(member.ready, 15)
    except AssertionError:
        for member in members:
            member.kill()
        raise
    return members


def b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def unb64(text: str) -> str:
    return b64decode(text).decode()


def key_of(record: EndpointRecord) -> str:
    return endpoint_key(record.network, record.address)


@contextlib.contextmanager
def running(members: Sequence[EtcdMember]) -> Iterator[Sequence[EtcdMember]]:
    try:
        yield members
    finally:
        for member in members:
            member.kill()
