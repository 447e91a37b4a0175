"""Networks that the engine has forgotten are forgotten, and no others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from driver.swarm.census import Census
from driver.swarm.docker_api import DockerApi
from driver.wish.model import Host, Network
from driver.wish.state import State, with_allocation, with_network, with_refusal
from driver.wish.values import NetworkId, NodeId, Vni
from driver.wish.wish import Wish
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.harness import wait_until
from tests.fakes.disk import MemoryDisk

KNOWN, GHOST, ALIVE = (NetworkId(name) for name in ("known", "ghost", "alive"))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "docker.sock").start()
    engine.networks = {KNOWN}
    yield engine
    engine.stop()


@pytest.fixture
def wish() -> Wish:
    networks = {name: Network(name, (), 4789, None, None, internal=False) for name in (KNOWN, GHOST, ALIVE)}
    made = Wish(MemoryDisk(State(Host(NodeId("n"), ip_address("192.0.2.1")), networks=networks)))
    made.change(lambda state: replace(state, doubtful=frozenset({KNOWN, GHOST})))
    return made


@pytest.fixture
def census(fake: FakeEngine, wish: Wish) -> Iterator[Census]:
    made = Census(wish, DockerApi(fake.path), interval=0.05)
    yield made
    made.stop()


def test_a_doubtful_network_that_the_engine_does_not_know_is_forgotten(
    wish: Wish, census: Census, fake: FakeEngine
) -> None:
    census.start()
    wait_until(lambda: set(wish.state.networks) == {KNOWN, ALIVE})
    time.sleep(0.2)
    assert set(wish.state.networks) == {KNOWN, ALIVE}
    assert not [call for call in fake.calls if ALIVE in call], "nobody doubts it"


def test_a_network_is_known_though_the_swarm_has_not_yet_allocated_another(
    wish: Wish, census: Census, fake: FakeEngine
) -> None:
    fake.version, fake.unallocated = "29.1.5", True
    wish.change(partial(with_allocation, network=KNOWN, vnis=(Vni(70),)))
    census.start()
    wait_until(lambda: GHOST not in wish.state.networks)
    asked = len(fake.calls)
    wait_until(lambda: len(fake.calls) > asked + 1)
    assert set(wish.state.networks) == {KNOWN, ALIVE}
    assert wish.state.allocations == {KNOWN: (70,)}


def test_all_doubtful_networks_are_one_question(wish: Wish, census: Census, fake: FakeEngine) -> None:
    fake.networks = {KNOWN, GHOST}
    census.start()
    wait_until(lambda: len(fake.calls) > 1)
    assert all(KNOWN in call and GHOST in call for call in fake.calls)


def test_a_part_of_an_id_is_not_the_network(wish: Wish, census: Census, fake: FakeEngine) -> None:
    fake.networks = {KNOWN, f"{GHOST}2"}
    census.start()
    wait_until(lambda: set(wish.state.networks) == {KNOWN, ALIVE})


def test_a_refused_network_is_forgotten_like_any_other(wish: Wish, census: Census, fake: FakeEngine) -> None:
    wish.change(lambda state: with_refusal(with_refusal(state, GHOST, "a reason"), ALIVE, "a reason"))
    wish.change(lambda state: replace(state, doubtful=frozenset({GHOST})))
    census.start()
    wait_until(lambda: set(wish.state.refused) == {ALIVE})


def test_an_engine_that_is_away_says_nothing(wish: Wish, census: Census, fake: FakeEngine) -> None:
    fake.stop()
    census.start()
    time.sleep(0.2)
    assert set(wish.state.networks) == {KNOWN, GHOST, ALIVE}
    fake.start()
    wait_until(lambda: set(wish.state.networks) == {KNOWN, ALIVE})


def test_a_network_that_is_made_while_the_engine_is_asked_stays(
    wish: Wish, census: Census, fake: FakeEngine
) -> None:
    fake.delay = 0.3
    census.start()
    time.sleep(0.2)  # the question is under way
    wish.change(lambda state: with_network(state, state.networks[GHOST]))
    time.sleep(0.8)
    assert GHOST in wish.state.networks


def test_vnis_of_a_network_that_the_engine_does_not_know_are_free(
    wish: Wish, census: Census, fake: FakeEngine
) -> None:
    """It was removed while another manager led."""
    for number, name in enumerate((KNOWN, GHOST)):
        wish.change(partial(with_allocation, network=name, vnis=(Vni(70 + number),)))
    census.start()
    wait_until(lambda: wish.state.allocations == {KNOWN: (70,)})
    looks = len(fake.calls)
    wait_until(lambda: len(fake.calls) > looks + 2)
    assert wish.state.allocations == {KNOWN: (70,)}


def test_an_engine_that_knows_nothing_of_us_is_not_believed(
    wish: Wish, census: Census, fake: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """As when somebody else's engine has the socket: said once, until it knows one of our networks."""
    fake.networks = set()
    census.start()
    wait_until(lambda: sum(ALIVE in call for call in fake.calls) > 3)
    assert set(wish.state.networks) == {KNOWN, GHOST, ALIVE}
    told = [message for message in caplog.messages if "it may be another engine" in message]
    assert len(told) == 1
    assert "PYOVERLAY_DOCKER_SOCKET" in told[0]
    fake.networks = {ALIVE}
    wait_until(lambda: set(wish.state.networks) == {ALIVE})


def test_a_plugins_own_engine_is_believed_without_a_network(wish: Wish, fake: FakeEngine) -> None:
    fake.networks, fake.plugins = set(), {"1f2e"}
    census = Census(wish, DockerApi(fake.path, "1f2e"), interval=0.05)
    census.start()
    try:
        wait_until(lambda: set(wish.state.networks) == {ALIVE})
    finally:
        census.stop()
