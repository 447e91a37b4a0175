"""Connections by way of a virtual address to a task whose host is dead end; all others go on."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from driver.kernel.balancers import sockets
from driver.wish.peers import GRACE, settle
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import endpoint_id, running
from tests.kernel.test_balancing import NET, TASKS, VIP, World, ask
from tests.kernel.test_behind import behind

pytestmark = pytest.mark.kernel

PORT = 81


@pytest.fixture
def world(hosts: Callable[[], Host]) -> Iterator[World]:
    with running([hosts(), hosts()]) as machines, closing(World(machines)) as world:
        yield world


class Talk:
    """A connection of *client* to *address*, and its other end at *task*."""

    def __init__(self, client: Space, task: Space, address: str = VIP) -> None:
        with task.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("0.0.0.0", PORT))
            server.listen()
            self.near = client.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.near.connect((address, PORT))
            self.far, _ = server.accept()
            self.far.settimeout(5)

    def close(self) -> None:
        self.near.close()
        self.far.close()

    @property
    def error(self) -> bool:
        """Whether the client has been told, without its doing anything."""
        return bool(select.select([self.near], [], [], 0)[0])

    def works(self) -> bool:
        self.near.sendall(b"ping")
        return self.far.recv(100) == b"ping"


@contextmanager
def talking(world: World, client: Space, task: int, address: str = VIP) -> Iterator[Talk]:
    """Connect to one of the tasks, by the virtual address unless another one is given."""
    world.say(web=[VIP, TASKS[task]])
    with closing(Talk(client, world.tasks[task].space, address)) as talk:
        assert talk.works()
        world.say(web=[VIP, *TASKS])
        yield talk


def cut_off(world: World) -> None:
    """Take the other host's power; the Swarm replaces its tasks, and the store misses it."""
    world.two.host.run("ip link set u0 down")
    world.two.peering.stop(leave=True)
    stale = world.two.wish.state.host.id
    assert eventually(lambda: world.one.wish.state.peers.nodes[stale].stale_since is not None)
    said(world, TASKS[0])


def said(world: World, *tasks: str) -> None:
    """Be the Swarm's leader for the host that lives."""
    known = world.one.wish.state.services[NET]
    changed = {
        vip: replace(one, backends=tuple(b for b in one.backends if str(b) in tasks))
        for vip, one in known.items()
    }
    revision = world.one.wish.change(lambda s: replace(s, services={NET: changed}))
    assert world.one.sandboxes.wait_tried(revision, 5)


def settled(world: World) -> None:
    """The other host has not come back within its grace, and does not answer."""
    late = time.monotonic() + GRACE + 1
    world.one.wish.change(lambda s: replace(s, peers=settle(s.peers, (), late)))


def test_who_reads_and_who_writes_hears_that_a_host_is_dead(world: World) -> None:
    with (
        talking(world, world.client, 1) as reader,
        talking(world, world.client, 2) as writer,
        talking(world, world.client, 0) as other,
    ):
        cut_off(world)
        writer.near.sendall(b"a line that is not acknowledged")
        assert not reader.error
        assert not writer.error, "it may come back"
        settled(world)
        assert eventually(lambda: reader.error and writer.error)
        for talk in (reader, writer):
            with pytest.raises(ConnectionError):
                talk.near.recv(100)
        assert other.works()
        assert ask(world.client, VIP)[0] == TASKS[0]


def test_a_task_on_its_way_out_keeps_its_connections(world: World) -> None:
    """The leader has taken it from the service; its container still runs, here or on another host."""
    with talking(world, world.client, 0) as here, talking(world, world.client, 1) as there:
        world.say(web=[VIP, TASKS[2]])
        assert ask(world.client, VIP)[0] == TASKS[2]
        world.say(web=[VIP])
        with pytest.raises(ConnectionRefusedError):
            ask(world.client, VIP)
        world.two.overlay.leave(NET, endpoint_id(NET, TASKS[2]))
        other = world.one.attach(NET, "10.1.0.99")
        assert eventually(lambda: reaches(other, TASKS[1]))
        assert here.works()
        assert there.works()


def reaches(client: Space, address: str) -> bool:
    return ask(client, address)[0] == address


def test_a_task_without_its_network_resets_too(world: World) -> None:
    """Disconnected by hand: nothing of its container says goodbye."""
    with talking(world, world.client, 1) as reader:
        world.tasks[1].space.run("ip link set eth0 down")
        world.two.overlay.leave(NET, endpoint_id(NET, TASKS[1]))
        assert eventually(lambda: reader.error)


def test_a_connection_to_the_task_itself_is_left_to_its_end(world: World) -> None:
    """Nothing was translated for it: as with any address that does not answer for a while."""
    with talking(world, world.client, 1, TASKS[1]) as direct, talking(world, world.client, 2) as reader:
        cut_off(world)
        settled(world)
        assert eventually(lambda: reader.error)
        assert not direct.error


def check_reset_by_writing(writer: Talk) -> None:
    """The answer to what it writes is a reset."""

    def told() -> bool:
        if not writer.error:
            writer.near.send(b"line\n")
        return writer.error

    assert eventually(told)
    with pytest.raises(ConnectionResetError):
        writer.near.recv(100)


def test_who_is_behind_a_container_is_reset_when_it_writes(world: World) -> None:
    with closing(behind(world.client)) as inner, talking(world, inner, 1) as writer:
        cut_off(world)
        settled(world)
        check_reset_by_writing(writer)


def test_who_listens_at_the_port_of_one_behind_is_left_alone(world: World) -> None:
    """When the kernel does not find a connection, it finds who listens at its client's port."""
    with (
        closing(behind(world.client)) as inner,
        talking(world, inner, 1) as writer,
        talking(world, world.client, 2) as reader,
        world.client.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(("0.0.0.0", writer.near.getsockname()[1]))
        listener.listen()
        cut_off(world)
        settled(world)
        assert eventually(lambda: reader.error)
        with inner.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.connect(("172.31.9.1", listener.getsockname()[1]))


def test_a_socket_that_speaks_both_families_is_ended_too(world: World) -> None:
    with talking(world, world.client, 1) as known:
        world.say(web=[VIP, TASKS[1]])
        task, client = world.tasks[1].space, world.client
        with task.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.bind(("0.0.0.0", 82))
            server.listen()
            client.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0")
            with client.socket(socket.AF_INET6, socket.SOCK_STREAM) as both:
                both.connect((f"::ffff:{VIP}", 82))
                cut_off(world)
                settled(world)
                assert eventually(lambda: known.error and bool(select.select([both], [], [], 0)[0]))


def test_without_the_kernels_help_who_writes_is_reset_and_the_rest_is_told_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_channel: object, _connections: Sequence[object]) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(sockets, "destroy", refuse)
    with talking(world, world.client, 1) as reader, talking(world, world.client, 2) as writer:
        cut_off(world)
        settled(world)
        check_reset_by_writing(writer)
        assert not reader.error
    assert eventually(lambda: caplog.text.count("clients that only read") == 1)
