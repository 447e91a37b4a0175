"""Tables in a container's namespace that hold more than usual, or that the container has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from driver.kernel import netns
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.kinds import Balancer, Services
from driver.kernel.objects import KernelState, index
from driver.reconcile.plan import diff
from tests.kernel.hosts import Space

pytestmark = pytest.mark.kernel

TABLE = "pyoverlay-net1"
VIP = ip_address("10.1.0.200")
CHAIN = f"ip {TABLE} s{VIP}"


@pytest.fixture
def container() -> Iterator[Space]:
    with closing(Space(netns.create())) as made:
        yield made


@pytest.fixture
def sandboxes() -> Iterator[NetlinkSandboxes]:
    with closing(NetlinkSandboxes()) as made:
        yield made


def wish(container: Space, services: Services) -> KernelState:
    return index([Balancer(container.path, TABLE, services)])


def backends(count: int) -> Services:
    return {VIP: tuple(ip_address("10.64.0.1") + number for number in range(count))}


def test_a_service_with_thousands_of_tasks(container: Space, sandboxes: NetlinkSandboxes) -> None:
    for count in (3000, 10_001, 1):
        want = wish(container, backends(count))
        assert sandboxes.apply(diff(want, sandboxes.read_sandbox(container.path))) == {}
        with closing(NetlinkSandboxes()) as others:
            assert others.read_sandbox(container.path) == want


@pytest.mark.parametrize(
    "change",
    [
        f"nft add element ip {TABLE} services '{{ * : accept }}'",
        f"nft add element ip {TABLE} services '{{ 10.1.0.7 : accept }}'",
        f"nft add rule {CHAIN} accept",
        f"nft flush chain {CHAIN}",
        f"nft flush chain {CHAIN}; nft add rule {CHAIN} accept",
        f"nft flush chain {CHAIN}; nft add rule {CHAIN} tcp dport vmap '{{ 80 : accept }}'",
        f"nft flush chain {CHAIN}; nft add rule {CHAIN} ip protocol vmap '{{ tcp : accept }}'",
        f"nft flush chain {CHAIN}; nft add rule {CHAIN} "
        "dnat to numgen inc mod 2 map '{ 0 : 10.64.0.1, 5 : 10.64.0.2 }'",
        f"nft add chain ip {TABLE} another",
        f"nft add chain ip {TABLE} another '{{ type filter hook output priority 0; }}'",
        f"nft chain ip {TABLE} output '{{ policy drop; }}'",
        f"nft flush chain ip {TABLE} output",
        f"nft delete table ip {TABLE}; nft add table ip {TABLE}",
        f"nft delete table ip {TABLE}; nft add table ip {TABLE};"
        f"nft add map ip {TABLE} services '{{ type inet_service : verdict; }}';"
        f"nft add chain ip {TABLE} output '{{ type nat hook output priority -100; }}';"
        f"nft add element ip {TABLE} services '{{ 80 : accept }}'; nft add rule ip {TABLE} output "
        "ip daddr vmap '{ 10.1.0.200 : accept }'",
    ],
)
def test_a_table_is_made_anew_whatever_the_container_made_of_it(
    container: Space, sandboxes: NetlinkSandboxes, change: str
) -> None:
    want = wish(container, backends(2))
    assert sandboxes.apply(diff(want, sandboxes.read_sandbox(container.path))) == {}
    container.run(change)
    have = sandboxes.read_sandbox(container.path)
    assert have != want
    assert sandboxes.apply(diff(want, have)) == {}
    assert sandboxes.read_sandbox(container.path) == want
