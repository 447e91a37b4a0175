"""What a new process makes of the former one's records, whose last call may have died with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from driver.cluster.memory import MemoryStore
from driver.kernel.kinds import Namespace, Port
from driver.kernel.names import container_name, port_name
from driver.mode import Alone
from driver.wish.errors import Conflict
from driver.wish.options import REFUSED
from driver.wish.values import EndpointId, NetworkId
from tests.unit.test_overlay import EP, EP2, NET, SUBNETS, Node, _soon

OTHER = "k2q8fz0d7wxbnmc5rjt1vplya"


@pytest.fixture
def cluster() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def node(cluster: MemoryStore) -> Iterator[Node]:
    made = Node(1, cluster, Alone)
    yield made
    made.end()


def again(node: Node) -> None:
    node.end()
    node.begin()


def create_endpoint(node: Node, endpoint: str, address: str = "10.62.0.4") -> None:
    node.overlay.create_endpoint(NET, endpoint, [ip_interface(f"{address}/24")], None, {})


def written(node: Node) -> set[str]:
    saved = node.disk.load()
    return set(saved.endpoints) if saved else set()


def test_an_endpoint_that_never_joined_is_not_announced_and_holds_no_address(
    node: Node, cluster: MemoryStore
) -> None:
    node.create()
    create_endpoint(node, EP)
    assert _soon(lambda: any("10.62.0.4" in key for key in cluster.dump()))
    again(node)
    assert _soon(lambda: not any("10.62.0.4" in key for key in cluster.dump()))
    assert not node.overlay.in_use(SUBNETS[0].prefix, ip_address("10.62.0.4"))
    create_endpoint(node, EP2)
    assert set(node.wish.state.endpoints) == {EP2}


def test_it_counts_again_when_it_joins(node: Node, cluster: MemoryStore) -> None:
    node.create()
    create_endpoint(node, EP)
    again(node)
    node.overlay.join(NET, EP, "")
    assert any("10.62.0.4" in key for key in cluster.dump())
    with pytest.raises(Conflict, match=r"10\.62\.0\.4 is used"):
        create_endpoint(node, EP2)


def test_a_container_that_ended_while_the_plugin_was_away_is_gone(node: Node, cluster: MemoryStore) -> None:
    """The engine gave the container end back to the host, and said Leave and DeleteEndpoint to nobody."""
    node.create()
    node.attach(EP, "10.62.0.4")
    node.attach(EP2, "10.62.0.5")
    node.end()
    ended = EndpointId(EP)
    alias = next(str(getattr(o, "alias", "")) for k, o in node.have().items() if k[2] == port_name(ended))
    node.kernel.host_devices[container_name(ended)] = alias
    node.begin()
    assert _soon(lambda: not any("10.62.0.4" in key for key in cluster.dump()))
    assert _soon(lambda: node.kernel.host_devices == {})
    assert {k[2] for k in node.have() if k[0] == Port.kind} == {port_name(EndpointId(EP2))}


def test_a_join_that_was_never_answered_can_be_repeated(node: Node) -> None:
    node.create()
    create_endpoint(node, EP)
    node.overlay.join(NET, EP, "")
    again(node)
    assert _soon(lambda: node.kernel.host_devices == {})
    attachment = node.overlay.join(NET, EP, "")
    assert attachment.interface in node.kernel.host_devices


def test_what_nobody_speaks_of_again_is_forgotten(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.audit_interval = 0.1
    monkeypatch.setattr("driver.reconcile.networks._FORGET_AFTER", 0.5)
    node.create()
    node.attach(EP, "10.62.0.4")
    create_endpoint(node, EP2, "10.62.0.5")
    began = time.monotonic()
    again(node)
    assert _soon(lambda: written(node) == {EP})
    assert time.monotonic() - began >= 0.5
    assert set(node.wish.state.networks) == {NET}, "the engine may still have it"


def test_a_network_whose_containers_went_with_the_host_does_not_hold_its_vni(cluster: MemoryStore) -> None:
    """An engine that was killed has forgotten its Swarm networks, and never says DeleteNetwork."""
    leader = Node(1, cluster)
    try:
        leader.create({"vni": "70001"})
        leader.attach(EP, "10.62.0.4")
        leader.end()
        leader.kernel.objects.clear()
        leader.begin()
        answer = leader.overlay.allocate_network(OTHER, {"vni": "70001"}, SUBNETS)
        assert (answer["vni"], REFUSED in answer) == ("70001", False)
    finally:
        leader.end()


def test_an_endpoint_that_left_is_gone(node: Node) -> None:
    node.create()
    node.attach(EP, "10.62.0.4")
    node.overlay.leave(NET, EP)
    again(node)
    assert EndpointId(EP) not in node.wish.state.endpoints
    assert _soon(lambda: list(node.kernel.namespaces()) == [])
    node.overlay.delete_endpoint(NET, EP)


def test_a_forgotten_networks_vni_may_be_asked_for(node: Node) -> None:
    """Its CreateNetwork, or its DeleteNetwork, was never answered; nobody will ever remove it."""
    node.create({"vni": "70001"})
    with pytest.raises(Conflict, match="70001 is used"):
        node.create({"vni": "70001"}, OTHER)
    again(node)
    node.create({"vni": "70001"}, OTHER)
    node.overlay.create_endpoint(OTHER, EP, [ip_interface("10.62.0.4/24")], None, {})
    node.overlay.join(OTHER, EP, "")


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
    assert NetworkId(NET) not in node.wish.state.doubtful
    with pytest.raises(Conflict, match="70001 is used"):
        node.create({"vni": "70001"}, OTHER)


def test_what_a_half_made_namespace_left_is_removed(node: Node) -> None:
    stray = Namespace("pyoverlay-stray")
    node.end()
    node.kernel.objects[stray.key] = stray
    node.begin()
    assert _soon(lambda: list(node.kernel.namespaces()) == [])


def test_a_port_that_was_renamed_meanwhile_is_no_container_that_ended(node: Node) -> None:
    node.create()
    node.attach(EP, "10.62.0.4")
    node.end()
    before = node.have()
    (key,) = (key for key in before if key.kind is Port.kind)
    port = node.kernel.objects.pop(key)
    assert isinstance(port, Port)
    node.kernel.spoil(replace(port, name="stray"))
    node.begin()
    assert _soon(lambda: node.have() == before)
    assert not node.wish.state.doubtful
