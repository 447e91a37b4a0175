"""The thread that keeps containers' tables, on namespaces in memory."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from driver.kernel.kinds import Balancer, Services
from driver.reconcile.sandboxes import SandboxReconciler
from driver.wish.peers import GRACE, settle
from driver.wish.state import State, with_endpoint, with_join, with_leave, without_endpoint
from driver.wish.values import EndpointId
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.fakes.sandboxes import FakeSandboxes
from tests.unit.test_balancers import NET, VIP, A, B, at, endpoint, record, state
from tests.unit.test_overlay import _soon

BOX1, BOX2 = "/run/docker/netns/1", "/run/docker/netns/2"
NAME = "pyoverlay-net1"


class World:
    """A host with containers 1 and 2, of which the second's namespace comes late, if *late*."""

    def __init__(self, begin: State, kernel: FakeSandboxes, audit_interval: float = 0.2) -> None:
        self.wish = Wish(MemoryDisk(begin))
        self.wish.change(lambda _: begin)
        self.kernel = kernel
        self.sandboxes = SandboxReconciler(self.wish, kernel, audit_interval=audit_interval)

    def update(self, change: Callable[[State], State]) -> None:
        assert self.sandboxes.wait_tried(self.wish.change(change), 30)

    def say(self, *backends: int) -> None:
        self.update(lambda s: replace(s, services={NET: {VIP: record(*backends)}}))

    def of(self, sandbox: str) -> Services:
        return self.kernel.services(sandbox).get(NAME, {})


@pytest.fixture
def world() -> Iterator[World]:
    made = World(state(record(1, 11)), FakeSandboxes(BOX1, BOX2))
    made.sandboxes.start()
    yield made
    made.sandboxes.stop()
    assert made.kernel.closed


def test_every_container_gets_the_table_and_each_change(world: World) -> None:
    assert _soon(lambda: world.of(BOX1) == world.of(BOX2) == {VIP: (at(1), at(11))})
    world.say(1, 2, 11)
    assert world.of(BOX2) == {VIP: (at(1), at(2), at(11))}
    world.update(lambda s: with_leave(s, EndpointId("e2")))
    assert world.of(BOX1) == {VIP: (at(1), at(11))}
    assert world.kernel.services(BOX2) == {}


def test_what_has_not_changed_is_not_written(world: World) -> None:
    world.say(1, 2, 11)
    world.kernel.applied.clear()
    world.update(lambda s: with_endpoint(s, endpoint(3)))
    time.sleep(0.5)
    assert world.kernel.applied == []


def test_a_namespace_that_comes_late_is_filled_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at the next try nor at an audit, which never come here."""
    monkeypatch.setattr(world.sandboxes, "_clock", lambda: 0.0)
    new = endpoint(3)
    world.update(lambda s: with_join(with_endpoint(s, new), NET, new.id, new.sandbox, "a Join"))
    world.say(1, 11)
    world.kernel.appear("/run/docker/netns/3")
    assert _soon(lambda: world.of("/run/docker/netns/3") == {VIP: (at(1), at(11))})


def test_a_container_whose_record_goes_first_keeps_nothing(world: World) -> None:
    world.say(11)
    world.update(lambda s: without_endpoint(s, EndpointId("e1")))
    assert world.kernel.services(BOX1) == {}
    assert world.of(BOX2)


def test_a_container_that_has_ended_troubles_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.say(1, 11)
    world.kernel.vanish(BOX1)
    world.say(2, 11)
    assert world.of(BOX2) == {VIP: (at(2), at(11))}
    world.update(lambda s: without_endpoint(s, EndpointId("e1")))
    assert not caplog.records


def test_one_containers_failure_holds_up_nobody_and_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.kernel.fail(BOX1, errno.ENOMEM)
    world.say(2, 11)
    assert world.of(BOX2) == {VIP: (at(2), at(11))}
    time.sleep(0.5)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    world.kernel.fail(BOX1, 0)
    assert _soon(lambda: world.of(BOX1) == {VIP: (at(2), at(11))})


def test_what_a_hand_changes_is_mended_and_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.say(1, 11)
    world.kernel.spoil(Balancer(BOX1, NAME, {}, sound=False))
    assert _soon(lambda: world.of(BOX1) == {VIP: (at(1), at(11))})
    assert _soon(lambda: f"repaired: table {NAME} in {BOX1} was changed" in caplog.text)


def test_the_table_of_services_that_went_unseen_was_no_strangers(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeSandboxes(BOX1, BOX2)
    kernel.spoil(Balancer(BOX1, NAME, {VIP: (at(7),)}))
    world = World(replace(state(), services={}), kernel)
    world.sandboxes.start()
    world.update(lambda s: replace(s, services={NET: {}}))
    assert _soon(lambda: kernel.services(BOX1) == {})
    assert not caplog.records
    world.sandboxes.stop()


def test_what_a_hand_does_while_a_service_changes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    world = World(state(record(1, 11)), FakeSandboxes(BOX1, BOX2), audit_interval=60.0)
    world.sandboxes.start()
    assert _soon(lambda: world.of(BOX1))
    world.kernel.spoil(Balancer(BOX1, "pyoverlay-other", {VIP: ()}))
    world.say(2, 11)
    assert world.kernel.services(BOX1) == {NAME: {VIP: (at(2), at(11))}}
    assert [r.message for r in caplog.records] == [f"repaired: table pyoverlay-other in {BOX1} was not ours"]
    world.sandboxes.stop()


def test_who_nobody_has_any_more_is_cut_off_in_the_networks_containers(world: World) -> None:
    """Not when the leader takes it from the service, nor while its host is only away."""
    world.say(1)
    away = replace(world.wish.state.peers.nodes[A], stale_since=1.0)
    world.update(lambda s: replace(s, peers=replace(s.peers, nodes={**s.peers.nodes, A: away})))
    assert world.kernel.cuts == {}
    world.update(lambda s: replace(s, peers=settle(s.peers, (), 1.0 + GRACE)))
    assert world.kernel.cuts == {BOX1: {at(11), at(12)}, BOX2: {at(11), at(12)}}
    world.update(lambda s: with_leave(s, EndpointId("e2")))
    assert world.kernel.cuts[BOX1] == {at(11), at(12), at(2)}


def test_who_has_moved_to_another_host_is_not_cut_off(world: World) -> None:
    world.say(1, 11)
    rows = dict(world.wish.state.peers.entries[NET])
    rows[at(11)] = replace(rows[at(11)], node=B)
    world.update(lambda s: replace(s, peers=replace(s.peers, entries={NET: rows})))
    assert world.kernel.cuts == {}


def test_silence_leaves_tables_as_they_are() -> None:
    kernel = FakeSandboxes(BOX1, BOX2)
    kernel.spoil(Balancer(BOX1, NAME, {VIP: (at(7),)}))
    kernel.spoil(Balancer(BOX1, "pyoverlay-other", {ip_address("10.3.0.1"): ()}))
    world = World(replace(state(), services={}), kernel)
    world.sandboxes.start()
    assert _soon(lambda: kernel.services(BOX1).keys() == {NAME}), "a network that it has left goes"
    world.say(1)
    assert world.of(BOX1) == {VIP: (at(1),)}
    world.sandboxes.stop()


def test_a_namespace_that_never_appears_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an engine whose --exec-root we do not see; what was there and has ended is no such thing."""
    monkeypatch.setattr("driver.reconcile.sandboxes._UNSEEN", 0.3)
    world = World(state(record(1, 11)), FakeSandboxes(BOX1))
    world.sandboxes.start()
    try:
        assert _soon(lambda: world.of(BOX1))
        world.kernel.vanish(BOX1)
        world.say(2, 11)
        assert _soon(lambda: caplog.records)
        new = endpoint(3)
        world.update(lambda s: with_join(with_endpoint(s, new), NET, new.id, new.sandbox, "a Join"))
        time.sleep(1)
    finally:
        world.sandboxes.stop()
    (told,) = caplog.messages
    assert f"namespace {BOX2} of a container cannot be seen" in told
    assert "--exec-root below /run" in told
