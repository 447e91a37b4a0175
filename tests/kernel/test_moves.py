"""An address that moves between hosts, to a container that waits to be spoken to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from driver.wish.values import NetworkId
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, Meter, endpoint_id, running

pytestmark = pytest.mark.kernel

NET = NetworkId("moves")
ADDRESS = "10.1.0.9"


@pytest.fixture
def machines(hosts: Callable[[], Host]) -> Iterator[list[Machine]]:
    with running([hosts(), hosts()]) as made:
        for machine in made:
            machine.create(NET, "10.1.0.0/24", 7001)
        yield made


def end(machine: Machine, space: Space) -> None:
    """Stop the container with the address that moves."""
    machine.containers.remove(space)
    space.close()
    machine.overlay.leave(NET, endpoint_id(NET, ADDRESS))
    machine.overlay.delete_endpoint(NET, endpoint_id(NET, ADDRESS))


@pytest.mark.parametrize("direction", ["here", "away"])
def test_who_knew_it_before_reaches_it_at_once(machines: list[Machine], direction: str) -> None:
    """The neighbour's entry stays good, since the MAC follows from the address: so nobody asks, and the
    bridge must not go by what it has learnt."""
    here, there = machines
    source, target = (there, here) if direction == "here" else (here, there)
    client = here.attach(NET, "10.1.0.2")
    there.attach(NET, "10.1.0.3")
    before = source.attach(NET, ADDRESS)
    with Meter(client, ADDRESS) as ping:
        assert eventually(lambda: len(ping.sent) > 20 and not ping.outage)
    end(source, before)
    assert eventually(lambda: ip_address(ADDRESS) not in here.wish.state.peers.entries[NET])
    target.attach(NET, ADDRESS)
    assert eventually(lambda: target is here or ip_address(ADDRESS) in here.wish.state.peers.entries[NET])
    here.reconciler.wait_applied(NET, here.wish.snapshot()[1], 30)
    with Meter(client, ADDRESS) as ping:
        time.sleep(0.3)
    assert len(ping.sent) > 20
    assert ping.lost == 0
