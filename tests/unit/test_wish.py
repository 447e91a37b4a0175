"""Who looks at the state does not wait for who changes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from driver.wish.errors import DiskError, NotFound
from driver.wish.model import Endpoint, Host, Network, Peer, PeerNode, Peers, Phase
from driver.wish.records import ServiceRecord
from driver.wish.state import State, with_endpoint, with_join_answered, with_network, without_network
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk

HOST = Host(NodeId("me"), ip_address("192.0.2.1"))
MOVED = Host(NodeId("me"), ip_address("192.0.2.2"))


class SlowDisk(MemoryDisk):
    """A disk that writes when it is let."""

    def __init__(self) -> None:
        super().__init__(State(HOST))
        self.writes, self.may_end = threading.Event(), threading.Event()
        self.saves = 0
        self.full = False

    def save(self, state: State) -> None:
        self.writes.set()
        assert self.may_end.wait(30)
        self.saves += 1
        if self.full:
            raise DiskError("no room")
        super().save(state)


def test_while_the_disk_writes_everybody_sees_the_former_state() -> None:
    disk = SlowDisk()
    wish = Wish(disk)
    change = threading.Thread(target=wish.change, args=[lambda state: replace(state, host=MOVED)])
    change.start()
    assert disk.writes.wait(30)
    assert wish.snapshot() == (wish.state, 1)
    assert wish.state.host == HOST
    disk.may_end.set()
    change.join()
    assert wish.snapshot() == (wish.state, 2)
    assert wish.state.host == MOVED


def network(number: int) -> Network:
    return Network(NetworkId(f"net{number}"), ())


@contextmanager
def held(wish: Wish, disk: SlowDisk) -> Iterator[ThreadPoolExecutor]:
    """Have the disk busy with a first network, until it is let; wait then until all calls have ended."""
    with ThreadPoolExecutor(60) as pool:
        first = pool.submit(wish.change, lambda state: with_network(state, network(0)))
        assert disk.writes.wait(30)
        yield pool
        disk.may_end.set()
        assert first.exception(30) is None or disk.full


def await_queue(wish: Wish, length: int) -> None:
    """Wait until so many calls are behind the write."""
    deadline = time.monotonic() + 30
    while len(wish._committed._queue) < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_fifty_calls_take_two_writes_and_are_on_disk_and_told_when_they_return() -> None:
    disk = SlowDisk()
    wish = Wish(disk)
    told: dict[int, set[NetworkId]] = {}
    wish.subscribe(lambda: told.update({threading.get_ident(): {*wish.state.networks}}))

    def call(number: int) -> None:
        revision = wish.change(lambda state: with_network(state, network(number)))
        assert disk.saved is not None
        assert network(number).id in disk.saved.networks
        assert network(number).id in told[threading.get_ident()], "the listeners did not hear of it"
        assert wish.snapshot()[1] >= revision > 1

    with held(wish, disk) as pool:
        calls = [pool.submit(call, number) for number in range(1, 50)]
        await_queue(wish, 49)
        assert wish.snapshot() == (State(HOST), 1)
        assert not told
    for done in calls:
        done.result()
    assert disk.saves == 2
    assert len(wish.state.networks) == 50


def test_what_was_heard_of_a_network_leaves_with_it() -> None:
    gone, stays = network(1), network(2)
    address = ip_address("10.1.0.9")
    peer = Peer(Mac("02:42:0a:01:00:09"), ip_address("192.0.2.2"), NodeId("other"))
    heard = {n.id: {address: peer} for n in (gone, stays)}
    services = {n.id: {address: ServiceRecord(n.id, address, "web", ())} for n in (gone, stays)}
    nodes = {NodeId("other"): PeerNode(ip_address("192.0.2.2"))}
    state = State(
        HOST,
        {gone.id: gone, stays.id: stays},
        peers=Peers(nodes, heard, frozenset(heard)),
        services=services,
    )
    after = without_network(state, gone.id)
    assert after.peers == Peers(nodes, {stays.id: heard[stays.id]}, frozenset({stays.id}))
    assert after.services == {stays.id: services[stays.id]}
    synced_only = replace(state, peers=Peers(nodes, {}, frozenset({gone.id})))
    assert not without_network(synced_only, gone.id).peers.synced


def test_soft_changes_do_not_wait_for_the_disk() -> None:
    disk = SlowDisk()
    join, endpoint = object(), EndpointId("ep")
    known = Endpoint(endpoint, NetworkId("net"), (ip_interface("10.1.0.2/24"),), Mac("02:42:0a:01:00:02"))
    disk.saved = replace(State(HOST), endpoints={endpoint: replace(known, phase=Phase.JOINED)})
    wish = Wish(disk)
    wish.change(lambda state: replace(state, joining={endpoint: join}))
    heard = []
    with held(wish, disk):
        wish.subscribe(lambda: heard.append(wish.snapshot()))
        revision = wish.change(lambda state: with_join_answered(state, endpoint, join))
        wish.change(lambda state: replace(state, offer={}))
        assert (wish.state.joining, wish.state.offer, wish.state.networks) == ({}, {}, {})
        assert heard[0][1] == revision
        assert not disk.saves
    assert (wish.state.joining, wish.state.offer, len(wish.state.networks)) == ({}, {}, 1)


def test_what_the_disk_refuses_is_seen_by_nobody_and_what_ends_has_ended() -> None:
    disk = SlowDisk()
    wish = Wish(disk)
    disk.may_end.set()
    wish.change(lambda state: with_network(state, network(1)))
    disk.writes.clear()
    disk.may_end.clear()
    disk.full = True
    calls: list[Future[int]] = []
    with held(wish, disk) as pool:
        calls.append(pool.submit(wish.change, lambda state: with_network(state, network(2))))
        calls.append(
            pool.submit(wish.change, lambda state: without_network(state, network(1).id), lasting=False)
        )
        await_queue(wish, 2)
    with pytest.raises(DiskError, match="no room"):
        calls[0].result()
    calls[1].result()
    assert wish.state == State(HOST)
    assert disk.saved is not None
    assert {*disk.saved.networks} == {network(1).id}
    disk.full = False
    wish.change(lambda state: with_network(state, network(3)))
    assert {*disk.saved.networks} == {network(3).id}


def test_an_endpoint_whose_network_the_disk_refuses_is_refused_as_well() -> None:
    """A call sees what came before it, on disk or not, and fails with it."""
    disk = SlowDisk()
    wish = Wish(disk)
    endpoint = Endpoint(
        EndpointId("ep"), network(0).id, (ip_interface("10.1.0.5/24"),), Mac("02:00:00:00:00:05")
    )

    def create(state: State) -> State:
        state.network(endpoint.network)
        return with_endpoint(state, endpoint)

    disk.full = True
    with held(wish, disk) as pool:
        call = pool.submit(wish.change, create)
        await_queue(wish, 1)
    with pytest.raises(NotFound, match="not known on this host"):
        call.result()
    assert wish.state == State(HOST)


def test_a_decision_is_the_one_that_was_kept() -> None:
    """A step may be tried on several states."""
    disk = SlowDisk()
    wish = Wish(disk)

    def step(state: State) -> tuple[State, int]:
        number = len(state.networks)
        return with_network(state, network(number)), number

    with held(wish, disk) as pool:
        calls = [pool.submit(wish.decide, step) for _ in range(9)]
        await_queue(wish, 9)
        wish.change(lambda state: replace(state, offer={}))
    assert sorted(call.result() for call in calls) == [*range(1, 10)]
    assert len(wish.state.networks) == 10
