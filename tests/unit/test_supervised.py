"""A thread that fails is seen, tried again without haste, and well again when its work is."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import pairwise
from types import SimpleNamespace

import pytest
import requests

from driver.cluster import peering
from driver.cluster.etcd.exchange import Exchange, Link
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import PlainSessions
from driver.cluster.etcd.writer import EtcdWriter
from driver.cluster.ledger.codec import Scope
from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.swarm.census import Census
from driver.swarm.docker_api import DockerApi
from driver.wish.model import Host, Network
from driver.wish.peers import GRACE
from driver.wish.records import Publication, View
from driver.wish.state import State
from driver.wish.values import NetworkId, NodeId
from driver.wish.wish import Wish
from lib import supervised
from lib.supervised import Doing, Supervised
from tests.fakes.disk import MemoryDisk
from tests.unit.test_overlay import _soon
from tests.unit.test_peering import WITHOUT_A, World
from tests.unit.test_peers import FULL


class Work:
    """A turn that fails while it is told to, and counts."""

    def __init__(self, pause: float = math.inf) -> None:
        self.turns: list[float] = []
        self.trouble: Exception | None = None
        self.pause = pause

    def turn(self) -> float:
        self.turns.append(time.monotonic())
        if self.trouble:
            raise self.trouble
        return self.pause


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def thread(work: Work) -> Iterator[Supervised]:
    made = Supervised("tester", work.turn)
    yield made
    assert made.stop(30)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_turn_comes_when_it_is_time_or_when_somebody_wakes(work: Work, thread: Supervised) -> None:
    thread.start()
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    thread.wake()
    assert _soon(lambda: len(work.turns) == 2)
    work.pause = 0.01
    thread.wake()
    assert _soon(lambda: len(work.turns) > 5)


def test_what_wakes_a_failing_thread_does_not_make_it_spin(
    work: Work, thread: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    work.trouble = RuntimeError("out of luck")
    thread.start()
    while len(work.turns) < 4:
        thread.wake()
    pauses = [later - earlier for earlier, later in pairwise(work.turns)]
    assert all(pause > 0.09 * 2**n for n, pause in enumerate(pauses))
    (told,) = errors(caplog)
    assert "'tester'" in told.getMessage()
    assert "RuntimeError: out of luck" in told.getMessage()
    assert told.exc_info


def test_its_state_can_be_read_and_failing_ends_when_it_goes_well_again(
    work: Work, thread: Supervised
) -> None:
    seen = thread.state
    assert seen.doing is Doing.NOTHING
    work.trouble = ValueError("what is this?")
    thread.start()
    assert _soon(lambda: thread.state.failures >= 2)
    seen = thread.state
    assert (seen.name, seen.doing, seen.reason) == ("tester", Doing.FAILING, "ValueError: what is this?")
    assert work.turns[0] <= seen.since < work.turns[1], "since the first failure"
    work.trouble = None
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    assert thread.state.failures >= seen.failures
    assert thread.state.reason == seen.reason
    thread.stop()
    seen = thread.state
    assert seen.doing is Doing.ENDED
    assert not thread.alive


def test_another_failure_is_logged_as_well_and_the_same_one_after_a_while(
    work: Work, thread: Supervised, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_LONGEST_PAUSE", 0.01)
    work.trouble = ValueError("one")
    thread.start()
    assert _soon(lambda: thread.state.failures > 10)
    work.trouble = ValueError("another")
    assert _soon(lambda: len(errors(caplog)) == 2)
    monkeypatch.setattr(supervised, "_SAY_AGAIN", 0.0)
    assert _soon(lambda: len(errors(caplog)) > 3)


def test_a_thread_that_fails_now_and_then_is_tried_again_at_once(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(supervised, "time", clock)
    monkeypatch.setattr(supervised, "_FIRST_PAUSE", 0.01)
    thread = Supervised("tester", work.turn)
    work.trouble = ValueError("now and then")
    thread.start()
    assert _soon(lambda: thread.state.failures >= 7)
    work.trouble = None
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    clock.monotonic = lambda: 2000.0
    work.trouble = ValueError("now and then")
    count = len(work.turns)
    thread.wake()
    assert _soon(lambda: len(work.turns) >= count + 2)
    assert work.turns[count + 1] - work.turns[count] < 0.3, "the first pause, not the next longer one: 0.64 s"
    assert thread.stop(30)


@pytest.mark.parametrize("trouble", [None, RuntimeError("again and again")], ids=["at rest", "backing off"])
def test_it_ends_at_once_whatever_it_waits_for(
    work: Work, monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    monkeypatch.setattr(supervised, "_FIRST_PAUSE", 60.0)
    thread = Supervised("tester", work.turn)
    work.trouble = trouble
    thread.start()
    assert _soon(lambda: thread.state.doing in (Doing.WAITING, Doing.FAILING))
    assert thread.stop(30)


def test_who_waits_within_a_turn_is_not_failing_any_more() -> None:
    go, goes_well = threading.Event(), threading.Event()

    def turn() -> float:
        if not goes_well.is_set():
            raise ValueError("not yet")
        with thread.waiting():
            go.wait(30)
        inside.append(thread.state.doing)
        return math.inf

    inside: list[Doing] = []
    thread = Supervised("tester", turn)
    thread.start()
    assert _soon(lambda: thread.state.doing is Doing.FAILING)
    goes_well.set()
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    go.set()
    assert _soon(lambda: inside == [Doing.RUNNING])
    assert thread.stop(30)


def test_a_burst_is_one_turn() -> None:
    work = Work()
    thread = Supervised("tester", work.turn, settle=0.1)
    thread.start()
    assert _soon(lambda: thread.state.doing is Doing.WAITING)
    with thread._changed:  # so that it is a burst on a busy machine as well
        for _ in range(100):
            thread.wake()
    assert thread.woken
    assert _soon(lambda: len(work.turns) == 2)
    assert not thread.woken
    assert thread.stop(30)
    assert len(work.turns) == 2


def test_the_first_turn_may_come_later(work: Work, thread: Supervised) -> None:
    start = time.monotonic()
    thread.start(0.2)
    assert _soon(lambda: work.turns)
    assert work.turns[0] - start >= 0.2


def test_the_last_word_is_the_threads_own(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    def last() -> None:
        said.append(threading.current_thread().name)
        raise OSError("too late")

    def turn() -> float:
        ending.end()
        return 0.0

    ending = Supervised("tester", turn, at_end=last)
    ending.start()
    assert ending.join(30)
    assert said == ["tester"]
    assert (ending.state.doing, ending.state.failures) == (Doing.ENDED, 1)
    assert "too late" in caplog.text


def test_one_that_never_began_can_be_stopped(thread: Supervised) -> None:
    assert thread.stop()
    assert thread.state.doing is Doing.NOTHING


class TestThreadsOfTheProduct:
    """What used to end for ever goes on."""

    def test_the_one_that_drops_silent_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peering, "_TICK", 0.01)
        world, asked = World(), threading.Event()
        probe = world.probe

        def fail_once(vteps: object) -> object:
            if not asked.is_set():
                asked.set()
                raise ValueError("filedescriptor out of range in select()")
            return probe(vteps)  # type: ignore[arg-type]

        monkeypatch.setattr(world.peering, "_probe", fail_once)
        world.peering.start()
        try:
            world.plane.say(FULL)
            world.plane.say(WITHOUT_A)
            world.now += GRACE
            assert asked.wait(30)
            world.now += GRACE
            world.wait(lambda: bool(world.asked))
            (thread,) = world.peering.threads
            assert (thread.state.name, thread.state.failures) == ("silent-hosts", 1)
        finally:
            world.peering.stop(leave=False)

    def test_the_one_that_asks_for_lost_networks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lost = NetworkId("lost")
        state = State(Host(NodeId("n"), ip_address("192.0.2.1")), {lost: Network(lost, ())})
        wish = Wish(MemoryDisk(state))
        answers: list[Callable[[], object]] = [lambda: 1 // 0, frozenset]
        docker = DockerApi()
        monkeypatch.setattr(docker, "known_networks", lambda _networks: answers.pop(0)())
        monkeypatch.setattr(docker, "vouches", lambda: True)
        census = Census(wish, docker, interval=0.01)
        census.start()
        assert _soon(lambda: not wish.state.networks)
        assert [thread.state.failures for thread in census.threads] == [1]
        census.stop()

    def test_the_one_that_keeps_a_store_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store, views = MemoryStore(), list[View]()
        plane = MemoryControlPlane(NodeId("a"), store)
        read = store.read_scope
        troubles: list[Exception] = [KeyError("nobody knows")]

        def fail_first(scope: Scope) -> object:
            if troubles:
                raise troubles.pop()
            return read(scope)

        monkeypatch.setattr(store, "read_scope", fail_first)
        plane.start(views.append)
        plane.publish(Publication(networks=frozenset({NetworkId("n")})))
        assert _soon(lambda: views and views[-1].connected)
        assert plane.wait_published(30)
        assert [thread.state.failures for thread in plane.threads] == [1]
        plane.stop(leave=False)

    def test_the_one_that_reads_the_store(self, caplog: pytest.LogCaptureFixture) -> None:
        asked: list[float] = []

        def endpoints() -> list[str]:
            asked.append(time.monotonic())
            raise RuntimeError("dictionary changed size during iteration")

        plane, views = EtcdControlPlane(NodeId("a"), endpoints), list[View]()
        plane.start(views.append)
        assert _soon(lambda: len(asked) >= 3)
        reader, writer = plane.threads
        assert (reader.state.name, reader.state.doing) == ("store-reader", Doing.FAILING)
        assert writer.state.name == "store-writer"
        assert _soon(lambda: writer.state.doing is Doing.WAITING)
        assert len(errors(caplog)) == 1
        plane.stop(leave=False)
        assert {thread.state.doing for thread in plane.threads} == {Doing.ENDED}

    def test_the_one_that_writes_to_the_store(self) -> None:
        """It gives its connection up, since nobody knows how that is."""

        class Broken(PlainSessions):
            def session(self) -> requests.Session:
                raise RuntimeError("can't start new thread")

        exchange = Exchange(NodeId("a"))
        link = exchange.link = Link("http://192.0.2.1:2379", 0)
        writer = EtcdWriter(exchange, Broken(), 15, 600.0)
        writer.thread.start()
        assert _soon(lambda: link.broken)
        assert _soon(lambda: writer.thread.state.doing is Doing.WAITING)
        assert writer.thread.state.failures == 1
        writer.thread.end()
        exchange.stop()
        assert writer.thread.join(30)
