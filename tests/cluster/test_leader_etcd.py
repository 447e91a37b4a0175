"""Who runs the Swarm's store: a real etcd, and engines that say what the test wants."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.cluster.etcd.client import EtcdClient, EtcdError
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import TlsSessions
from driver.swarm.docker_api import DockerApi
from driver.swarm.etcd_process import EtcdProcess, EtcdSettings
from driver.swarm.leader_etcd import LeaderEtcd
from driver.swarm.remotes import known_managers
from driver.wish.errors import StoreUnavailable
from driver.wish.values import NodeId
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.harness import Host, endpoint, wait_until
from tests.cluster.pki import Authority
from tests.cluster.relay import free_port

pytestmark = pytest.mark.store


class Node:
    """A Swarm node on its own loopback address, with an engine, a store and a plane."""

    def __init__(
        self, number: int, role: str, *, port: int, swarm: Authority, etcd: Path, folder: Path
    ) -> None:
        self.name = f"n{number}"
        self.address = f"127.0.1.{number}"
        self.engine = FakeEngine(folder / f"{self.name}.sock", self.name, self.address)
        self.engine.manager = role == "swarm-manager"
        self.engine.leader = False
        credentials = swarm.credentials(self.name, role)
        self.sessions = TlsSessions(credentials)
        settings = EtcdSettings(str(etcd), folder / self.name / "etcd", port, credentials)
        self.store = LeaderEtcd(DockerApi(self.engine.path), settings)
        self.host = Host(self.name, EtcdControlPlane(NodeId(self.name), self.store.endpoints, self.sessions))

    def start(self) -> None:
        self.engine.start()
        self.store.start()
        self.host.start()

    def stop(self) -> None:
        self.host.plane.stop(leave=False)
        self.store.stop()
        self.engine.stop()

    def answers(self) -> bool:
        client = EtcdClient(f"https://{self.address}:{self.store._settings.port}", self.sessions.session())
        try:
            client.read_prefixes({"/": 0})
        except EtcdError:
            return False
        finally:
            client.close()
        return True


MakeNodes = Callable[..., list[Node]]


@pytest.fixture
def nodes(etcd: Path, tmp_path: Path) -> Iterator[MakeNodes]:
    swarm = Authority(tmp_path / "pki")
    port = free_port()
    made: list[Node] = []

    def make(managers: int, workers: int = 0) -> list[Node]:
        roles = ["swarm-manager"] * managers + ["swarm-worker"] * workers
        made.extend(
            Node(i + 1, role, port=port, swarm=swarm, etcd=etcd, folder=tmp_path)
            for i, role in enumerate(roles)
        )
        for node in made:
            node.engine.managers = [f"{n.address}:2377" for n in made[:managers]]
        return made

    yield make
    for node in made:
        node.stop()


def test_the_leader_serves_and_a_worker_finds_it(nodes: MakeNodes) -> None:
    manager, worker = nodes(1, 1)
    manager.engine.leader = True
    for node in (manager, worker):
        node.start()
        node.host.join(endpoint(node.name, 1 + len(node.name)))
    assert worker.host.published()
    assert manager.host.published()
    assert manager.store.serving
    assert not worker.store.serving
    assert worker.store.endpoints() == [f"https://127.0.1.1:{manager.store._settings.port}"]
    own = manager.store.endpoints()[0]
    assert own == f"https://127.0.0.1:{manager.store._settings.port}", "no router need lead a host to itself"


def test_a_manager_that_does_not_lead_does_not_serve(nodes: MakeNodes) -> None:
    (manager,) = nodes(1)
    manager.start()
    time.sleep(0.5)
    assert not manager.store.serving
    manager.engine.leader = True
    wait_until(lambda: manager.store.serving)
    manager.engine.quorum = False
    time.sleep(2.5)
    assert manager.store.serving, "not to know is no reason to stop"
    assert manager.answers()
    manager.engine.stop()
    time.sleep(1.5)
    assert manager.store.serving
    manager.engine.start()
    manager.engine.quorum = True
    manager.engine.leader = False
    wait_until(lambda: not manager.store.serving)
    assert not manager.answers()
    assert not manager.store._settings.folder.exists()


@pytest.mark.parametrize("how", ["demoted", "left"])
def test_who_is_no_manager_any_more_stops(nodes: MakeNodes, how: str) -> None:
    (manager,) = nodes(1)
    manager.engine.leader = True
    manager.start()
    wait_until(lambda: manager.store.serving)
    if how == "demoted":
        manager.engine.manager = False
    else:
        manager.engine.state = "inactive"
    wait_until(lambda: not manager.store.serving)
    wait_until(lambda: manager.host.view.connected is False)
    assert how == "demoted" or not manager.store.endpoints()


def test_the_leader_changes_and_all_follow(nodes: MakeNodes) -> None:
    one, two, worker = nodes(2, 1)
    one.engine.leader = True
    for i, node in enumerate((one, two, worker)):
        node.start()
        node.host.join(endpoint(node.name, i))
    wait_until(lambda: len(worker.host.rows()) == 3 and worker.host.view.connected)
    for node in (one, two):
        assert node.host.published()
    one.engine.leader = False
    two.engine.leader = True
    wait_until(lambda: two.store.serving and not one.store.serving)
    for node in (one, two, worker):
        assert node.host.published()
        wait_until(lambda node=node: len(node.host.rows()) == 3 and len(node.host.view.nodes) == 3)  # type: ignore[misc]
    for view in worker.host.views[-3:]:
        assert len(view.endpoints.get(endpoint("x", 1).network, {})) == 3 or view.connected


def test_a_server_that_dies_is_started_again(nodes: MakeNodes, caplog: pytest.LogCaptureFixture) -> None:
    (manager,) = nodes(1)
    manager.engine.leader = True
    manager.start()
    manager.host.join(endpoint("n1", 1))
    assert manager.host.published()
    server = manager.store._etcd._server
    assert server is not None
    assert server._process is not None
    server._process.kill()
    wait_until(lambda: not manager.host.view.connected)
    wait_until(lambda: manager.host.plane.wait_published(1))
    assert any("etcd has died" in r.message for r in caplog.records)


def test_where_no_thread_can_be_had_no_server_is_left(
    etcd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Authority(tmp_path / "pki").credentials("m")
    settings = EtcdSettings(str(etcd), tmp_path / "etcd", free_port(), credentials)
    server = EtcdProcess(settings, "127.0.0.1")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StoreUnavailable, match="can't start new thread"):
            server.start()
    assert server.alive()
    server.stop()
    assert not server.alive()
    server.start()
    assert server.wait_healthy(10)
    server.stop()


def test_a_taken_port_is_logged_once_and_tried_again(
    nodes: MakeNodes, caplog: pytest.LogCaptureFixture
) -> None:
    (manager,) = nodes(1)
    manager.engine.leader = True
    with socket.create_server(("0.0.0.0", manager.store._settings.port)):
        manager.start()
        wait_until(lambda: any("PYOVERLAY_STORE_PORT" in r.message for r in caplog.records))
        time.sleep(2)
        assert not manager.store.serving
    wait_until(lambda: manager.store.serving)
    assert sum("is not available on this host" in r.message for r in caplog.records) == 1


def test_a_worker_whose_engine_cannot_be_asked_finds_the_store(nodes: MakeNodes, tmp_path: Path) -> None:
    manager, worker = nodes(1, 1)
    manager.engine.leader = True
    manager.start()
    (tmp_path / "state.json").write_text(json.dumps([{"node_id": "n1", "addr": f"{manager.address}:2377"}]))
    found = LeaderEtcd(
        DockerApi(tmp_path / "nowhere.sock"),
        worker.store._settings,
        noted=lambda: known_managers(tmp_path),
    )
    plane = EtcdControlPlane(NodeId(worker.name), found.endpoints, worker.sessions)
    host = Host(worker.name, plane)
    found.start()
    host.start()
    host.join(endpoint(worker.name, 1))
    assert host.published()
    plane.stop(leave=False)
    found.stop()


def test_an_engine_that_comes_up_later(nodes: MakeNodes) -> None:
    manager, worker = nodes(1, 1)
    manager.engine.leader = True
    for node in (manager, worker):
        node.store.start()
        node.host.start()
    time.sleep(0.7)
    assert not worker.store.endpoints()
    for node in (manager, worker):
        node.engine.start()
    wait_until(lambda: worker.host.view.connected)


def test_a_worker_at_rest_leaves_the_engine_alone(nodes: MakeNodes) -> None:
    manager, worker = nodes(1, 1)
    manager.engine.leader = True
    for node in (manager, worker):
        node.start()
    wait_until(lambda: worker.host.view.connected)
    worker.engine.calls.clear()
    manager.engine.calls.clear()
    began = time.monotonic()
    time.sleep(3)
    asked, took = (len(worker.engine.calls), len(manager.engine.calls)), time.monotonic() - began
    assert asked[0] <= took / 2
    assert asked[1] <= 2 * took


def test_a_leader_whose_engine_is_away_gives_way_to_the_next(
    nodes: MakeNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: while nobody else serves, an engine that cannot tell changes nothing.

    Both nodes are on one loopback, where only one etcd can have the port: the other's is made up.
    """
    serving: set[str] = set()
    monkeypatch.setattr("driver.swarm.leader_etcd.serves", lambda _sessions, host, _port: host in serving)
    old, new = nodes(2)
    old.engine.leader = True
    old.start()
    wait_until(lambda: old.store.serving)
    old.engine.stop()
    time.sleep(2.5)
    assert old.answers()
    serving.add(new.address)
    wait_until(lambda: not old.answers())
