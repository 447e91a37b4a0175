"""Who is asked before the rows of a host go, and by which thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

import pytest

from driver.cluster import peering
from driver.cluster.peering import Peering
from driver.wish.model import Host, Network
from driver.wish.peers import GRACE
from driver.wish.records import Publication, View
from driver.wish.state import State
from driver.wish.values import Address
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.unit.test_peers import FULL, ME, NET, VTEP, A, B, C, record, view, where

WITHOUT_A = view(record("10.0.0.1", ME), record("10.0.0.3", B), record("10.0.0.4", C), nodes=(ME, B, C))

ONLY_C = view(record("10.0.0.1", ME), record("10.0.0.4", C), nodes=(ME, C))


class Plane:
    """A control plane whose views the test gives."""

    def __init__(self) -> None:
        self.say: Callable[[View], None] = lambda _view: None

    def start(self, on_view: Callable[[View], None]) -> None:
        self.say = on_view

    def publish(self, wish: Publication) -> None: ...

    def wait_published(self, timeout: float) -> bool:
        return timeout >= 0

    def stop(self, *, leave: bool) -> None: ...


class World:
    """A host that hears of three others; it has a clock of its own, and those in *alive* answer it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[Collection[Address]] = []
        self.alive: set[Address] = set()
        self.plane = Plane()
        self.wish = Wish(MemoryDisk(State(Host(ME, VTEP[ME]), {NET: Network(NET, ())})))
        self.peering = Peering(self.wish, self.plane, clock=lambda: self.now, probe=self.probe)

    def probe(self, vteps: Collection[Address]) -> Collection[Address]:
        self.asked.append(vteps)
        return self.alive.intersection(vteps)

    def rows(self) -> set[str]:
        return set(where(self.wish.state.peers))

    def wait(self, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not fact():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def pass_a_grace(self) -> None:
        before = len(self.asked)
        self.now += GRACE
        self.wait(lambda: len(self.asked) > before)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(peering, "_TICK", 0.01)
    world = World()
    world.peering.start()
    world.plane.say(FULL)
    yield world
    world.peering.stop(leave=False)


def test_nobody_is_asked_while_all_are_in_the_store(world: World) -> None:
    world.now += 10 * GRACE
    time.sleep(0.1)
    assert not world.asked
    assert world.rows() == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


def test_the_rows_of_a_host_that_does_not_answer_go_after_the_grace(world: World) -> None:
    world.plane.say(WITHOUT_A)
    time.sleep(0.1)
    assert not world.asked
    world.pass_a_grace()
    world.wait(lambda: world.rows() == {"10.0.0.3", "10.0.0.4"})
    assert set(world.asked[0]) == {VTEP[A]}


def test_a_host_that_answers_keeps_its_rows_is_told_once_and_is_asked_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.alive = {VTEP[A]}
    world.plane.say(WITHOUT_A)
    world.pass_a_grace()
    world.pass_a_grace()
    assert "10.0.0.2" in world.rows()
    assert [r.message for r in caplog.records].count(
        f"host {VTEP[A]} is away from the store and answers: its containers' rows stay"
    ) == 1
    world.alive = set()
    world.pass_a_grace()
    world.wait(lambda: "10.0.0.2" not in world.rows())


def test_a_host_that_comes_back_is_as_if_it_had_never_been_away(world: World) -> None:
    world.plane.say(WITHOUT_A)
    world.now += GRACE - 1
    world.plane.say(FULL)
    world.now += 10
    time.sleep(0.1)
    assert not world.asked
    assert "10.0.0.2" in world.rows()


def test_that_most_are_missing_is_told_once_each_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> int:
        return caplog.text.count("more than half of the known nodes are missing")

    for seen in (ONLY_C, ONLY_C, FULL, FULL, ONLY_C):
        world.plane.say(seen)
    assert told() == 2
    world.now += 10 * GRACE
    time.sleep(0.1)
    assert world.rows() == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
