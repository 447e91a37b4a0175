"""Virtual addresses on the real kernel: containers on two machines."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.objects import Key
from driver.kernel.ops import Op
from driver.reconcile.sandboxes import SandboxReconciler
from driver.wish.errors import KernelError
from driver.wish.records import ServiceRecord
from driver.wish.values import NetworkId
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, Meter, endpoint_id, running

pytestmark = pytest.mark.kernel

NET = NetworkId("net1")
TABLE = "pyoverlay-net1"
VIP, EMPTY = "10.1.0.200", "10.1.0.201"
TASKS = ["10.1.0.11", "10.1.0.12", "10.1.0.13"]


class Task:
    """A server on TCP and UDP port 80 that answers with its own address and the client's."""

    def __init__(self, space: Space, address: str) -> None:
        self.space, self.address = space, address
        self._tcp = space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._udp = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for one in (self._tcp, self._udp):
            one.settimeout(None)
            one.bind(("0.0.0.0", 80))
        self._tcp.listen(128)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._accept, self._receive)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for one in (self._tcp, self._udp):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._tcp.close()
        self._udp.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, client = self._tcp.accept()
                connection.sendall(f"{self.address} {client[0]}".encode())
                connection.close()

    def _receive(self) -> None:
        with suppress(OSError):
            while True:
                data, client = self._udp.recvfrom(100)
                if not data:
                    return
                self._udp.sendto(f"{self.address} {client[0]}".encode(), client)


class World:
    """Two machines; three tasks, the first on the same machine as the client."""

    def __init__(self, machines: list[Machine]) -> None:
        self.one, self.two = machines
        for machine in machines:
            machine.create(NET, "10.1.0.0/24", 1000)
        places = (self.one, self.two, self.two)
        self.tasks = [Task(m.attach(NET, a), a) for m, a in zip(places, TASKS, strict=True)]
        self.client = self.one.attach(NET, "10.1.0.2")

    def say(self, **services: list[str]) -> None:
        """Be the Swarm's leader, and have every container know."""
        records = frozenset(
            ServiceRecord(NET, ip_address(vip), name, tuple(map(ip_address, backends)))
            for name, (vip, *backends) in services.items()
        )
        self.one.wish.change(lambda s: replace(s, offer={NET: records}))
        assert eventually(lambda: all(self.heard(m) == records for m in (self.one, self.two)))
        for machine in (self.one, self.two):
            assert machine.sandboxes.wait_tried(machine.wish.snapshot()[1], 5)

    def heard(self, machine: Machine) -> frozenset[ServiceRecord] | None:
        known = machine.wish.state.services.get(NET)
        return None if known is None else frozenset(known.values())

    def close(self) -> None:
        for task in self.tasks:
            task.stop()


@pytest.fixture
def world(hosts: Callable[[], Host]) -> Iterator[World]:
    with running([hosts(), hosts()]) as machines, closing(World(machines)) as world:
        yield world


def ask(client: Space, address: str) -> tuple[str, str]:
    """Connect; return who has answered, and whom he has seen."""
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect((address, 80))
        answer = connection.recv(100).decode().split()
    return answer[0], answer[1]


def ask_udp(client: Space, address: str) -> tuple[str, str]:
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((address, 80))
        connection.send(b"who?")
        answer = connection.recv(100).decode().split()
    return answer[0], answer[1]


def tables(space: Space) -> list[str]:
    listed = json.loads(space.run("nft -j list tables"))["nftables"]
    return [one["table"]["name"] for one in listed if "table" in one]


def test_nobody_is_sent_to_a_task_whose_rows_are_not_there_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question for its MAC would get no answer, and the next one is asked a second later."""
    apply = world.one.host.kernel.apply

    def late(ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        time.sleep(0.5)
        return apply(ops)

    monkeypatch.setattr(world.one.host.kernel, "apply", late)
    for number in (14, 15, 16):
        task = Task(world.two.attach(NET, f"10.1.0.{number}"), f"10.1.0.{number}")
        world.tasks.append(task)
        world.say(web=[VIP, task.address])
        began = time.monotonic()
        assert ask(world.client, VIP) == (task.address, "10.1.0.2")
        assert time.monotonic() - began < 0.95


def test_connections_go_to_all_tasks_in_turn_and_these_see_the_client(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    seen = Counter(ask(world.client, VIP) for _ in range(3000))
    assert seen == {(task, "10.1.0.2"): 1000 for task in TASKS}
    seen = Counter(ask_udp(world.client, VIP) for _ in range(30))
    assert seen == {(task, "10.1.0.2"): 10 for task in TASKS}
    with Meter(world.client, VIP) as ping:
        assert eventually(lambda: len(ping.sent) > 10)
    assert ping.lost == 0


def test_a_task_reaches_its_own_service_and_itself(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    task = world.tasks[1]
    seen = Counter(ask(task.space, VIP) for _ in range(9))
    assert seen == {(one, task.address): 3 for one in TASKS}


def test_not_all_containers_begin_with_the_same_task(world: World) -> None:
    others = [world.one.attach(NET, f"10.1.0.{n}") for n in range(50, 62)]
    world.say(web=[VIP, *TASKS])
    first = Counter(ask(other, VIP)[0] for other in others)
    assert all(2 <= first[task] <= 6 for task in TASKS), first


def test_a_service_without_tasks_refuses_at_once(world: World) -> None:
    world.say(web=[VIP, *TASKS], none=[EMPTY])
    for how in (ask, ask_udp):
        with pytest.raises(OSError, match=r"refused|not permitted"):
            how(world.client, EMPTY)
    world.say(web=[VIP, *TASKS], none=[EMPTY, TASKS[0]])
    assert ask(world.client, EMPTY)[0] == TASKS[0]
    world.say(web=[VIP], none=[EMPTY, TASKS[0]])
    with pytest.raises(ConnectionRefusedError):
        ask(world.client, VIP)


def test_a_task_that_ends_gets_nothing_more_before_the_leader_says_so(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    gone = endpoint_id(NET, TASKS[2])
    world.two.overlay.leave(NET, gone)
    assert eventually(lambda: TASKS[2] not in world.client.run(f"nft list table ip {TABLE}"))
    assert {ask(world.client, VIP)[0] for _ in range(10)} == set(TASKS[:2])


def test_a_connection_keeps_its_task(world: World) -> None:
    world.say(web=[VIP, TASKS[1]])
    with (
        world.tasks[1].space.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        world.client.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("0.0.0.0", 81))
        server.listen()
        client.connect((VIP, 81))
        there, _ = server.accept()
        world.say(web=[VIP, TASKS[0]])
        assert ask(world.client, VIP)[0] == TASKS[0]
        client.sendall(b"still here")
        assert there.recv(100) == b"still here"
        known = world.client.run("conntrack -L -p tcp --dport 81").split()
        assert int(known[2]) > 20 * 60, "seconds for which it may be idle"
        there.close()


@pytest.mark.parametrize(
    "spoil",
    [
        "flush ruleset",
        f"delete table ip {TABLE}",
        f"flush chain ip {TABLE} output",
        f"flush chain ip {TABLE} s{VIP}",
        f"add rule ip {TABLE} s{VIP} accept",
        f"add chain ip {TABLE} more",
        f"delete element ip {TABLE} services {{ {VIP} }}",
        f"add chain ip {TABLE} output {{ policy drop; }}",
    ],
)
def test_what_a_hand_changes_is_right_again(
    world: World, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.say(web=[VIP, *TASKS])
    before = world.client.run(f"nft list table ip {TABLE}")
    world.client.run(f"nft '{spoil}'")
    assert eventually(
        lambda: TABLE in tables(world.client) and world.client.run(f"nft list table ip {TABLE}") == before
    )
    assert ask(world.client, VIP)[0] in TASKS
    assert eventually(lambda: f"repaired: table {TABLE}" in caplog.text)


def test_tables_of_others_are_left_alone(world: World) -> None:
    world.client.run("nft add table ip theirs; nft add chain ip theirs x; nft add table ip6 pyoverlay-x")
    world.say(web=[VIP, *TASKS])
    time.sleep(0.5)
    assert sorted(tables(world.client)) == sorted(["theirs", "pyoverlay-x", TABLE])


def test_a_restart_takes_over_what_is_there(world: World) -> None:
    world.say(web=[VIP, *TASKS], none=[EMPTY])
    world.one.sandboxes.stop()
    monitor = "timeout 1.5 nft monitor || true"
    told: list[str] = []
    watcher = threading.Thread(target=lambda: told.append(world.client.run(monitor)))
    watcher.start()
    time.sleep(0.3)
    world.one.sandboxes = SandboxReconciler(world.one.wish, NetlinkSandboxes(), audit_interval=0.2)
    world.one.sandboxes.start()
    watcher.join()
    assert told == [""]
    world.say(web=[VIP, *TASKS[:1]])
    assert {ask(world.client, VIP)[0] for _ in range(4)} == {TASKS[0]}


def test_while_nobody_has_said_anything_tables_stay(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    world.one.sandboxes.stop()
    world.one.wish.change(lambda s: replace(s, services={}))
    world.one.sandboxes = SandboxReconciler(world.one.wish, NetlinkSandboxes(), audit_interval=0.2)
    world.one.sandboxes.start()
    time.sleep(0.5)
    assert tables(world.client) == [TABLE]


def test_who_leaves_takes_nothing_along(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    assert tables(world.client) == [TABLE]
    world.one.overlay.leave(NET, endpoint_id(NET, "10.1.0.2"))
    world.one.overlay.delete_endpoint(NET, endpoint_id(NET, "10.1.0.2"))
    assert eventually(lambda: tables(world.client) == [])


def test_the_last_service_takes_the_table_along(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    assert tables(world.client) == [TABLE]
    world.say()
    assert eventually(lambda: tables(world.client) == [])


def test_datagrams_from_one_port_leave_a_task_that_has_ended(world: World) -> None:
    world.say(web=[VIP, *TASKS[:2]])
    with world.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(0.2)
        connection.connect((VIP, 80))
        connection.send(b"who?")
        first = connection.recv(100).decode().split()[0]
        (other,) = set(TASKS[:2]) - {first}
        world.say(web=[VIP, other])

        def who() -> str:
            connection.send(b"who?")
            with suppress(TimeoutError):
                return connection.recv(100).decode().split()[0]
            return ""

        assert eventually(lambda: who() == other)


def test_a_connection_that_is_being_made_goes_to_a_task_that_lives(world: World) -> None:
    world.two.attach(NET, "10.1.0.77").run("ip link set eth0 down")
    world.say(web=[VIP, "10.1.0.77"])
    with world.client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect_ex((VIP, 80))
        time.sleep(0.1)
        world.say(web=[VIP, TASKS[0]])
        connection.settimeout(4)
        assert connection.recv(100).decode().split()[0] == TASKS[0]


def test_datagrams_that_began_before_the_table_was_there_arrive_when_it_is(world: World) -> None:
    world.client.run("nft add table ip dns; nft 'add chain ip dns o { type nat hook output priority -100; }'")
    with world.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(0.2)
        connection.connect((VIP, 80))

        def who() -> str:
            with suppress(OSError):
                connection.send(b"who?")
                return connection.recv(100).decode().split()[0]
            return ""

        assert who() == ""
        world.say(web=[VIP, TASKS[0]])
        assert eventually(lambda: who() == TASKS[0])


def test_ten_thousand_short_connections_leave_nothing_lasting(world: World) -> None:
    """Only what the kernel itself remembers of ended connections, for two minutes at most."""
    world.say(web=[VIP, *TASKS])
    before = world.client.run("nft list ruleset")
    seen = Counter(ask(world.client, VIP)[0] for _ in range(10_000))
    assert max(seen.values()) - min(seen.values()) <= 1
    assert world.client.run("nft list ruleset") == before
    assert eventually(lambda: longest_memory(world.client) <= 120)


def longest_memory(space: Space) -> int:
    """For how many more seconds the kernel will remember a connection."""
    return max(int(line.split()[2]) for line in space.run("conntrack -L 2>/dev/null").splitlines())
