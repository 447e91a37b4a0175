"""What a new process makes of the former one's records, whose last call may have died with it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

import pytest

from driver.control.memory import MemoryStore
from driver.errors import Conflict
from driver.objects import Namespace
from driver.values import EndpointId, NetworkId
from tests.unit.test_service import EP, EP2, NET, SUBNETS, Node, _soon

OTHER = "k2q8fz0d7wxbnmc5rjt1vplya"


@pytest.fixture
def cluster() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def node(cluster: MemoryStore) -> Iterator[Node]:
    made = Node(1, cluster, scope="local")
    yield made
    made.end()


def again(node: Node) -> None:
    node.end()
    node.begin()


def create_endpoint(node: Node, endpoint: str) -> None:
    node.service.create_endpoint(NET, endpoint, [ip_interface("10.62.0.4/24")], None, {})


def test_an_endpoint_that_never_joined_is_not_announced_and_holds_no_address(
    node: Node, cluster: MemoryStore
) -> None:
    node.create()
    create_endpoint(node, EP)
    assert _soon(lambda: any("10.62.0.4" in key for key in cluster.dump()))
    again(node)
    assert _soon(lambda: not any("10.62.0.4" in key for key in cluster.dump()))
    assert not node.service.in_use(SUBNETS[0].prefix, ip_address("10.62.0.4"))
    create_endpoint(node, EP2)
    assert set(node.store.state.endpoints) == {EP2}


def test_it_counts_again_when_it_joins(node: Node, cluster: MemoryStore) -> None:
    node.create()
    create_endpoint(node, EP)
    again(node)
    node.service.join(NET, EP, "")
    assert any("10.62.0.4" in key for key in cluster.dump())
    with pytest.raises(Conflict, match=r"10\.62\.0\.4 is used"):
        create_endpoint(node, EP2)


def test_an_endpoint_that_left_is_gone(node: Node) -> None:
    node.create()
    node.attach(EP, "10.62.0.4")
    node.service.leave(NET, EP)
    again(node)
    assert EndpointId(EP) not in node.store.state.endpoints
    assert _soon(lambda: list(node.kernel.namespaces()) == [])
    node.service.delete_endpoint(NET, EP)


def test_a_forgotten_networks_vni_may_be_asked_for(node: Node) -> None:
    """Its CreateNetwork, or its DeleteNetwork, was never answered; nobody will ever remove it."""
    node.create({"vni": "70001"})
    with pytest.raises(Conflict, match="70001 is used"):
        node.create({"vni": "70001"}, OTHER)
    again(node)
    node.create({"vni": "70001"}, OTHER)
    node.service.create_endpoint(OTHER, EP, [ip_interface("10.62.0.4/24")], None, {})
    node.service.join(OTHER, EP, "")


def test_a_network_with_containers_keeps_its_vni(node: Node) -> None:
    node.create({"vni": "70001"})
    node.attach(EP, "10.62.0.4")
    again(node)
    with pytest.raises(Conflict, match="70001 is used"):
        node.create({"vni": "70001"}, OTHER)


def test_a_network_that_the_engine_speaks_of_again_keeps_its_vni(node: Node) -> None:
    node.create({"vni": "70001"})
    again(node)
    create_endpoint(node, EP)
    assert NetworkId(NET) not in node.store.state.doubtful
    with pytest.raises(Conflict, match="70001 is used"):
        node.create({"vni": "70001"}, OTHER)


def test_what_a_half_made_namespace_left_is_removed(node: Node) -> None:
    stray = Namespace("pyoverlay-stray")
    node.end()
    node.kernel.objects[stray.key] = stray
    node.begin()
    assert _soon(lambda: list(node.kernel.namespaces()) == [])
