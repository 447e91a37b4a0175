"""Who sits behind a container (an engine in it, a VPN's clients) reaches virtual addresses too."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from driver.kernel import netns
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.reconcile.sandboxes import SandboxReconciler
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Meter, running
from tests.kernel.test_balancing import EMPTY, TABLE, TASKS, VIP, Task, World, ask, ask_udp, tables

pytestmark = pytest.mark.kernel

INNER, ROUTER = "172.31.9.2", "172.31.9.1"

FORMER = f"""
table ip {TABLE} {{
    map services {{ type ipv4_addr : verdict; elements = {{ {VIP} : goto s{VIP}, {EMPTY} : goto s{EMPTY} }} }}
    chain output {{ type nat hook output priority -100; policy accept; ip daddr vmap @services; }}
    chain s{VIP} {{ dnat to numgen inc mod 1 map {{ 0 : {TASKS[1]} }}; }}
    chain s{EMPTY} {{ meta l4proto tcp reject with tcp reset; reject; }}
}}
"""
"""As versions without the chain for those behind have made it."""


@pytest.fixture
def world(hosts: Callable[[], Host]) -> Iterator[World]:
    with running([hosts(), hosts()]) as machines, closing(World(machines)) as world:
        yield world


def behind(router: Space, *, masquerade: bool = True) -> Space:
    """Put a namespace behind a container, as an engine or a VPN server in it does."""
    inner = Space(netns.create())
    router.run(f"ip link add v0 type veth peer name v1 netns {inner.path} && ip addr add {ROUTER}/24 dev v0")
    router.run("ip link set v0 up; sysctl -qw net.ipv4.ip_forward=1")
    if masquerade:
        router.run(
            "nft add table ip own; nft 'add chain ip own p { type nat hook postrouting priority 100; }'"
        )
        router.run("nft 'add rule ip own p ip saddr 172.31.9.0/24 oif eth0 masquerade'")
    inner.run(f"ip addr add {INNER}/24 dev v1; ip link set v1 up; ip link set lo up")
    inner.run(f"ip route add default via {ROUTER}")
    return inner


def test_who_is_behind_a_container_reaches_all_tasks_in_turn(world: World) -> None:
    world.say(web=[VIP, *TASKS])
    with closing(behind(world.client)) as inner:
        for how in (ask, ask_udp):
            assert {how(inner, VIP) for _ in range(9)} == {(task, "10.1.0.2") for task in TASKS}
        with Meter(inner, VIP) as ping:
            assert eventually(lambda: len(ping.sent) > 10)
        assert ping.lost < len(ping.sent)


def test_a_service_without_tasks_refuses_them_at_once_too(world: World) -> None:
    world.say(web=[VIP, *TASKS], none=[EMPTY])
    with closing(behind(world.client)) as inner:
        for how in (ask, ask_udp):
            began = time.monotonic()
            with pytest.raises(OSError, match=r"refused|not permitted"):
                how(inner, EMPTY)
            assert time.monotonic() - began < 2, "an address that nobody has takes three seconds"
        world.say(web=[VIP], none=[EMPTY, TASKS[0]])
        assert ask(inner, EMPTY)[0] == TASKS[0]
        with pytest.raises(ConnectionRefusedError):
            ask(inner, VIP)


def test_a_task_that_forwards_may_be_the_one_that_answers(world: World) -> None:
    """Hairpin: who is behind a task asks for its service, and gets this very task in its turn."""
    world.say(web=[VIP, *TASKS])
    with closing(behind(world.tasks[0].space)) as inner:
        assert {ask(inner, VIP)[0] for _ in range(9)} == set(TASKS)


def test_a_containers_own_rules_come_first(world: World) -> None:
    """A transparent proxy in it gets what is behind it, as where a virtual address is on the wire."""
    proxy = Task(world.client, "proxy")
    world.tasks.append(proxy)
    with closing(behind(world.client)) as inner:
        world.client.run("nft add table ip proxy")
        for hook in ("prerouting", "output"):
            world.client.run(f"nft 'add chain ip proxy {hook} {{ type nat hook {hook} priority -100; }}'")
            world.client.run(f"nft 'add rule ip proxy {hook} ip daddr {VIP} tcp dport 80 redirect to :80'")
        world.say(web=[VIP, *TASKS])
        assert ask(inner, VIP)[0] == "proxy"
        assert ask(world.client, VIP)[0] == "proxy"
        assert ask_udp(inner, VIP)[0] in TASKS


def test_what_is_meant_for_the_container_or_for_others_is_left_alone(world: World) -> None:
    """Its own address from before and behind, a task's from behind, an address behind it from the overlay."""
    world.say(web=[VIP, *TASKS])
    own = Task(world.client, "10.1.0.2")
    with closing(behind(world.client)) as inner:
        behind_it = Task(inner, INNER)
        world.tasks += [own, behind_it]
        other = world.two.attach("net1", "10.1.0.3")
        other.run("ip route add 172.31.9.0/24 via 10.1.0.2")
        assert ask(other, "10.1.0.2") == ("10.1.0.2", "10.1.0.3")
        assert ask(inner, ROUTER) == ("10.1.0.2", INNER)
        assert ask(inner, TASKS[1]) == (TASKS[1], "10.1.0.2")
        assert ask(other, INNER) == (INNER, "10.1.0.3")


def test_a_table_of_the_former_version_is_replaced_and_connections_go_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.say(web=[VIP, TASKS[1]], none=[EMPTY])
    world.one.sandboxes.stop()
    world.client.run(f"nft delete table ip {TABLE}; echo '{FORMER}' | nft -f -")
    with (
        world.tasks[1].space.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        world.client.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        closing(behind(world.client)) as inner,
    ):
        server.bind(("0.0.0.0", 81))
        server.listen()
        client.connect((VIP, 81))
        there, _ = server.accept()
        world.one.sandboxes = SandboxReconciler(world.one.wish, NetlinkSandboxes(), audit_interval=0.2)
        world.one.sandboxes.start()
        assert eventually(lambda: "prerouting" in world.client.run(f"nft list table ip {TABLE}"))
        for said in (b"still", b"here"):
            client.sendall(said)
            assert there.recv(100) == said
            there.sendall(said)
            assert client.recv(100) == said
        there.close()
        assert ask(inner, VIP)[0] == TASKS[1]
    assert tables(world.client).count(TABLE) == 1
    assert "repaired" not in caplog.text
