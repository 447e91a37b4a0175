"""What the plugin on the Swarm's leader says of services: a fake engine's lists, and a real Store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from driver.swarm import service_watch as watch
from driver.swarm.docker_api import DockerApi
from driver.swarm.service_watch import ServiceWatch
from driver.wish.model import Host
from driver.wish.records import Offer, ServiceRecord
from driver.wish.state import State
from driver.wish.values import NetworkId, NodeId
from driver.wish.wish import Wish
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.harness import wait_until
from tests.fakes.disk import MemoryDisk
from tests.unit.test_vips import OURS, VIP, network, service, task


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "docker.sock").start()
    engine.lists["networks"] = [network(OURS, vni="1", vxlan_port="2")]
    engine.lists["services"] = [service()]
    engine.lists["tasks"] = [task(3)]
    yield engine
    engine.stop()


@pytest.fixture
def wish() -> Wish:
    return Wish(MemoryDisk(State(Host(NodeId("n"), ip_address("192.0.2.1")))))


@pytest.fixture
def versions() -> list[tuple[int, int]]:
    """What it has noted of the engine."""
    return []


@pytest.fixture
def watcher(
    fake: FakeEngine, wish: Wish, versions: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServiceWatch]:
    monkeypatch.setattr(watch, "_RETRY", 0.05)
    monkeypatch.setattr(watch, "_FACTS", 0.2)
    made = ServiceWatch(wish, DockerApi(fake.path), note_version=versions.append)
    yield made
    made.stop()


def offered(*numbers: int) -> Offer:
    backends = tuple(ip_address(f"10.201.10.{number}") for number in numbers)
    return {OURS: frozenset({ServiceRecord(OURS, ip_address(VIP), "web", backends)})}


def test_the_leader_says_what_its_engine_says(wish: Wish, watcher: ServiceWatch, fake: FakeEngine) -> None:
    watcher.start()
    wait_until(lambda: wish.state.offer == offered(3))
    fake.lists["tasks"] = [task(3), task(4)]
    wait_until(lambda: wish.state.offer == offered(3, 4))


def test_the_swarms_port_is_known_and_kept_while_the_engine_does_not_say(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine
) -> None:
    fake.port, fake.leader = 7789, False
    watcher.start()
    wait_until(lambda: wish.state.host.swarm_port == 7789)
    fake.manager = False
    asked = fake.calls.count("/info")
    wait_until(lambda: fake.calls.count("/info") > asked + 2)
    assert wish.state.host.swarm_port == 7789
    fake.manager, fake.port = True, 4789
    wait_until(lambda: wish.state.host.swarm_port == 4789)


@pytest.mark.parametrize("manager", [True, False])
def test_the_engines_version_is_noted_and_followed(
    watcher: ServiceWatch, fake: FakeEngine, versions: list[tuple[int, int]], manager: bool
) -> None:
    """A worker's too: it has the same gossip."""
    fake.manager = manager
    watcher.start()
    wait_until(lambda: (28, 5) in versions)


def test_an_engine_that_was_upgraded_is_noted(
    watcher: ServiceWatch, fake: FakeEngine, versions: list[tuple[int, int]]
) -> None:
    watcher.start()
    wait_until(lambda: (28, 5) in versions)
    fake.version = "29.6.1"
    wait_until(lambda: versions[-1] == (29, 6))


def test_a_job_has_a_name_while_it_runs(wish: Wish, watcher: ServiceWatch, fake: FakeEngine) -> None:
    fake.lists["tasks"] = [task(3, desired="complete"), task(4, desired="shutdown")]
    watcher.start()
    wait_until(lambda: wish.state.offer == offered(3))
    fake.lists["tasks"] = [task(3, state="complete", desired="complete")]
    wait_until(lambda: wish.state.offer == offered())


def test_an_event_has_it_look_at_once(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_AT_REST", 60.0)
    watcher.start()
    wait_until(lambda: wish.state.offer == offered(3) and any("/events" in call for call in fake.calls))
    fake.lists["tasks"] = [task(4)]
    time.sleep(0.3)
    assert wish.state.offer == offered(3)
    fake.events.put('{"Type":"service","Action":"update"}')
    wait_until(lambda: wish.state.offer == offered(4))


@pytest.mark.parametrize("role", ["worker", "follower"])
def test_who_does_not_lead_says_nothing(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine, role: str
) -> None:
    fake.manager, fake.leader = role != "worker", False
    watcher.start()
    wait_until(lambda: wish.state.offer == {})
    assert not any(call.startswith(("/services", "/tasks")) for call in fake.calls)


def test_before_the_first_answer_nothing_is_said_and_a_former_leader_stops(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine
) -> None:
    fake.garbage = b"no JSON"
    watcher.start()
    time.sleep(0.3)
    assert wish.state.offer is None
    fake.garbage = b""
    wait_until(lambda: wish.state.offer == offered(3))
    fake.leader = False
    wait_until(lambda: wish.state.offer == {})


@pytest.mark.parametrize("trouble", ["away", "garbage", "no quorum"])
def test_an_engine_that_cannot_tell_changes_nothing(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.start()
    wait_until(lambda: wish.state.offer == offered(3))
    fake.lists["tasks"] = []
    changes: dict[str, Any] = {"garbage": {"garbage": b"{}"}, "no quorum": {"quorum": False}}
    for name, value in changes.get(trouble, {}).items():
        setattr(fake, name, value)
    if trouble == "away":
        fake.stop()
    before = wish.state.offer
    if trouble != "no quorum":
        wait_until(lambda: "--endpoint-mode dnsrr" in caplog.text)
    time.sleep(1.5)
    assert wish.state.offer == before == offered(3)
    assert caplog.text.count("--endpoint-mode dnsrr") == (0 if trouble == "no quorum" else 1)


def test_without_networks_of_ours_nothing_else_is_asked(
    wish: Wish, watcher: ServiceWatch, fake: FakeEngine
) -> None:
    fake.lists["networks"] = [network(NetworkId("theirs"))]
    watcher.start()
    wait_until(lambda: wish.state.offer == {})
    assert not any(call.startswith(("/services", "/tasks")) for call in fake.calls)
