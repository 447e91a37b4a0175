"""Who is asked before the rows of a host go, and by which thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from driver.cluster import peering
from driver.cluster.peering import Peering
from driver.wish.model import Host, Network, PeerNode, Peers
from driver.wish.peers import GRACE, merge
from driver.wish.records import NodeRecord, Publication, View
from driver.wish.state import State, with_network
from driver.wish.values import Address, EndpointId, NetworkId, NodeId
from driver.wish.wish import Wish
from lib.supervised import Supervised
from tests.fakes.disk import MemoryDisk
from tests.unit.test_peers import FULL, ME, NET, VTEP, A, B, C, record, view, where

WITHOUT_A = view(record("10.0.0.1", ME), record("10.0.0.3", B), record("10.0.0.4", C), nodes=(ME, B, C))

ONLY_C = view(record("10.0.0.1", ME), record("10.0.0.4", C), nodes=(ME, C))


class Plane:
    """A control plane whose views the test gives."""

    threads: tuple[Supervised, ...] = ()

    def __init__(self) -> None:
        self.say: Callable[[View], None] = lambda _view: None

    def start(self, on_view: Callable[[View], None]) -> None:
        self.say = on_view

    def publish(self, wish: Publication) -> None: ...

    def wait_published(self, timeout: float) -> bool:
        return timeout >= 0

    def wait_announced(self, network: NetworkId, endpoint: EndpointId, timeout: float) -> bool:
        return timeout >= 0

    def stop(self, *, leave: bool) -> None: ...


class World:
    """A host that hears of three others; it has a clock of its own, and those in *alive* answer it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[Collection[Address]] = []
        self.alive: set[Address] = set()
        self.plane = Plane()
        self.disk = MemoryDisk(State(Host(ME, VTEP[ME]), {NET: Network(NET, ())}))
        self.wish = Wish(self.disk)
        self.peering = Peering(self.wish, self.plane, clock=lambda: self.now, probe=self.probe)

    def probe(self, vteps: Collection[Address]) -> Collection[Address]:
        self.asked.append(vteps)
        return self.alive.intersection(vteps)

    def rows(self) -> set[str]:
        return set(where(self.wish.state.peers))

    def wait(self, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
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
        f"host {VTEP[A]} is away from the store but answers: keeping its containers' rows"
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


def test_nobody_is_judged_while_we_are_cut_off(world: World) -> None:
    """Also not at once when we are back: who was missing then, and is now, gets a whole grace."""
    world.plane.say(WITHOUT_A)
    world.plane.say(replace(WITHOUT_A, connected=False))
    world.now += 10 * GRACE
    world.peering._tick()
    world.plane.say(WITHOUT_A)
    world.peering._tick()
    assert not world.asked
    assert world.rows() == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
    world.pass_a_grace()
    world.wait(lambda: world.rows() == {"10.0.0.3", "10.0.0.4"})


def test_nobody_is_judged_before_the_store_was_reached(world: World) -> None:
    """A new process knows from the kernel that there are others, and nothing more."""
    world.peering.stop(leave=False)
    again = Peering(world.wish, world.plane, clock=lambda: world.now, probe=world.probe)
    world.wish.change(lambda state: replace(state, peers=merge(state.peers, WITHOUT_A, ME, [NET], 0)))
    world.now += 10 * GRACE
    again._tick()
    assert not world.asked


def test_who_was_being_asked_when_we_were_cut_off_is_not_judged(world: World) -> None:
    def cut_off(_vteps: Collection[Address]) -> Collection[Address]:
        world.plane.say(replace(WITHOUT_A, connected=False))
        return ()

    world.peering.stop(leave=False)
    world.peering._probe = cut_off
    world.plane.say(WITHOUT_A)
    world.now += GRACE
    world.peering._tick()
    assert "10.0.0.2" in world.rows()


def test_nothing_is_sent_to_this_host_itself(world: World) -> None:
    former = NodeId("former")
    seen = view(*FULL.endpoints[NET].values(), record("10.0.0.8", former))
    world.plane.say(replace(seen, nodes={**seen.nodes, former: NodeRecord(former, VTEP[ME])}))
    assert world.rows() == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


def test_that_most_are_missing_is_told_once_each_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> int:
        return caplog.text.count("more than half of the known nodes are missing")

    for seen in (ONLY_C, ONLY_C, FULL, FULL, ONLY_C):
        world.plane.say(seen)
    assert told() == 2
    world.now += 10 * GRACE
    time.sleep(0.1)
    assert world.rows() == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


class Merging:
    """Lets a test do something while a view is being merged."""

    def __init__(self, meanwhile: Callable[[int], None]) -> None:
        self.meanwhile = meanwhile
        self.times = 0

    def __call__(self, *arguments: Any, **options: Any) -> Peers:
        merged = merge(*arguments, **options)
        self.times += 1
        self.meanwhile(self.times)
        return merged


def in_time(work: Callable[[], object]) -> None:
    """Do it in another thread, which must not be held up."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "held up by the merge"


def away(state: State) -> set[Address]:
    return {node.vtep for node in state.peers.nodes.values() if node.stale_since is not None}


def test_calls_go_on_while_a_view_is_merged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Host(ME, VTEP[A])

    def call(_times: int) -> None:
        in_time(lambda: world.wish.change(lambda state: replace(state, host=moved)))

    merging = Merging(call)
    monkeypatch.setattr(peering, "merge", merging)
    world.plane.say(WITHOUT_A)
    assert merging.times == 1
    assert world.wish.state.host == moved
    assert away(world.wish.state) == {VTEP[A]}


def test_a_view_is_merged_again_when_a_network_came_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = NetworkId("net2")

    def create_network(times: int) -> None:
        if times == 1:
            in_time(lambda: world.wish.change(lambda state: with_network(state, Network(new, ()))))

    merging = Merging(create_network)
    monkeypatch.setattr(peering, "merge", merging)
    world.plane.say(replace(FULL, endpoints={**FULL.endpoints, new: {}}))
    assert merging.times == 2
    assert world.wish.state.peers.synced == {NET, new}


def test_a_view_is_merged_again_when_other_hosts_were_heard_of_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = NodeId("found")

    def adopt(times: int) -> None:
        def add(state: State) -> State:
            nodes = {**state.peers.nodes, found: PeerNode(ip_address("192.0.2.99"), stale_since=0.0)}
            return replace(state, peers=replace(state.peers, nodes=nodes))

        if times == 1:
            in_time(lambda: world.wish.change(add))

    monkeypatch.setattr(peering, "merge", Merging(adopt))
    world.plane.say(WITHOUT_A)
    assert away(world.wish.state) == {VTEP[A], ip_address("192.0.2.99")}


def test_a_view_is_merged_however_often_networks_come_and_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as creator:

        def create_network(times: int) -> None:
            network = Network(NetworkId(f"other{times}"), ())
            made = creator.submit(world.wish.change, lambda state: with_network(state, network))
            wait([made], 30 if times <= peering._TRIES else 0)  # in the end it has to wait for the merge

        merging = Merging(create_network)
        monkeypatch.setattr(peering, "merge", merging)
        world.plane.say(WITHOUT_A)
    assert merging.times == 4
    assert away(world.wish.state) == {VTEP[A]}
    assert {f"other{times}" for times in range(1, 5)} <= world.wish.state.networks.keys()


def test_a_view_goes_in_while_the_disk_is_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, may_end = threading.Event(), threading.Event()

    def save(_state: State) -> None:
        writes.set()
        assert may_end.wait(30)

    monkeypatch.setattr(world.disk, "save", save)
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(
            world.wish.change, lambda state: with_network(state, Network(NetworkId("n"), ()))
        )
        assert writes.wait(30)
        world.plane.say(WITHOUT_A)
        assert away(world.wish.state) == {VTEP[A]}
        assert "n" not in world.wish.state.networks
        may_end.set()
        change.result()
    assert "n" in world.wish.state.networks
    assert away(world.wish.state) == {VTEP[A]}


def test_the_control_plane_is_told_first_though_silent_hosts_are_being_asked(world: World) -> None:
    """To ask them takes seconds; by then the process may have been killed, and its lease ends."""
    asked, released = threading.Event(), threading.Event()

    def probe(_: Collection[Address]) -> Collection[Address]:
        asked.set()
        released.wait(60)
        return ()

    world.peering._probe = probe
    world.plane.say(FULL)
    world.plane.say(WITHOUT_A)
    world.now += GRACE
    assert asked.wait(30)
    world.peering.stop(leave=False)
    assert any(thread.alive for thread in world.peering.threads), "not waited for"
    released.set()
    world.wait(lambda: not any(thread.alive for thread in world.peering.threads))
