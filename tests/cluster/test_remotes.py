"""The managers, from the engine's own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driver.cluster.etcd.tls import Credentials
from driver.swarm.docker_api import DockerApi
from driver.swarm.etcd_process import EtcdSettings
from driver.swarm.leader_etcd import LeaderEtcd
from driver.swarm.remotes import known_managers
from tests.cluster.fake_engine import FakeEngine


def noted(folder: Path, *addresses: object) -> None:
    peers = [{"node_id": f"m{number}", "addr": address} for number, address in enumerate(addresses)]
    (folder / "state.json").write_text(json.dumps(peers))


def test_each_manager_is_named_once_without_its_port(tmp_path: Path) -> None:
    noted(tmp_path, "192.0.2.3:2377", "192.0.2.1:2377", "[2001:db8::1]:2377", "192.0.2.1:4000", "m4")
    assert known_managers(tmp_path) == ("192.0.2.1", "192.0.2.3", "2001:db8::1", "m4")


def test_a_host_in_no_swarm_has_no_such_file(tmp_path: Path) -> None:
    assert known_managers(tmp_path) == ()
    (tmp_path / "state.json").mkdir()
    assert known_managers(tmp_path) == ()


@pytest.mark.parametrize(
    "content", ["", "no JSON", "null", "{}", "[7, null, []]", '[{"node_id":"x"}]', "\xff"]
)
def test_a_file_that_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_bytes(content.encode("latin-1"))
    assert known_managers(tmp_path) == ()


def test_what_else_the_entries_have_is_ignored(tmp_path: Path) -> None:
    peers = [{"addr": "192.0.2.1:2377", "weight": 10}, {"addr": ""}, {"addr": 7}]
    (tmp_path / "state.json").write_text(json.dumps(peers))
    assert known_managers(tmp_path) == ("192.0.2.1",)


def test_the_folder_comes_first_and_the_engine_second(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "docker.sock").start()
    engine.managers = ["192.0.2.9:2377"]
    settings = EtcdSettings("etcd", tmp_path / "etcd", 2389, Credentials(tmp_path / "ca"))
    leader = LeaderEtcd(DockerApi(engine.path), settings, noted=lambda: known_managers(tmp_path))
    leader._refresh()
    assert leader.endpoints() == ["https://192.0.2.9:2389"]
    noted(tmp_path, "192.0.2.1:2377", "192.0.2.2:2377")
    assert leader.endpoints() == ["https://192.0.2.1:2389", "https://192.0.2.2:2389"]
    engine.stop()
