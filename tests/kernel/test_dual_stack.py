"""Containers of one network with IPv4 and IPv6 subnets, of which an endpoint may have any two."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface, ip_network

import pytest

from driver.kernel import netns
from driver.kernel.names import container_name
from driver.mode import Alone
from driver.overlay import Overlay
from driver.wish.model import Subnet
from driver.wish.values import EndpointId
from tests.kernel.hosts import Host, Space
from tests.kernel.machine import Machine, endpoint_id, running
from tests.kernel.test_datapath import ping

pytestmark = pytest.mark.kernel

NET = "dual"
PREFIXES = [ip_network(text) for text in ("10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64")]


def attach(machine: Machine, *addresses: str) -> Space:
    """Start a container with these addresses, as a stand-alone engine does."""
    overlay = Overlay(machine.wish, machine.reconciler, machine.peering, Alone())
    overlay.create_network(NET, {"vni": "70001"}, [Subnet(p, p[1]) for p in PREFIXES], internal=False)
    endpoint = endpoint_id(NET, addresses[0].partition("/")[0])
    overlay.create_endpoint(NET, endpoint, [ip_interface(a) for a in addresses], None, {})
    space = Space(netns.create())
    machine.containers.append(space)
    routes = overlay.join(NET, endpoint, space.path).routes
    machine.host.run(f"ip link set {container_name(EndpointId(endpoint))} netns {space.path} name eth0")
    for address in addresses:
        space.run(f"ip address add {address} dev eth0 {'nodad' if ':' in address else ''}")
    space.run("ip link set eth0 up")
    for route in routes:
        way = f"via {route.next_hop}" if route.next_hop else "dev eth0"
        space.run(f"ip route add {route.destination} {way}")
    return space


def test_subnets_of_both_families_reach_each_other_on_both_hosts(hosts: Callable[[], Host]) -> None:
    with running([hosts(), hosts()]) as (here, there):
        one = attach(here, "10.1.0.11/24", "fd00:1::11/64")
        attach(here, "10.2.0.12/24", "fd00:1::12/64")
        attach(there, "10.2.0.13/24", "fd00:1::13/64")
        for target in ("10.2.0.12", "fd00:1::12", "10.2.0.13", "fd00:1::13"):
            assert ping(one, target), target
