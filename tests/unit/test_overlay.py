"""The use cases, on the fake kernel and the in-memory control plane: several hosts in one process."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.cluster.peering import Peering
from driver.cluster.publication import publication
from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Row,
    Shortcut,
    Vxlan,
)
from driver.kernel.names import ALIAS_MAX, container_name, namespace_name, port_name
from driver.kernel.objects import KernelState
from driver.kernel.ops import Set
from driver.mode import Alone, InSwarm, Mode
from driver.overlay import MULTICAST, Overlay, Route
from driver.reconcile.networks import NetworkReconciler
from driver.wish.errors import BadRequest, Conflict, KernelError, NotFound, Unsupported
from driver.wish.model import Host, Phase, Subnet, Underlay
from driver.wish.options import REFUSED
from driver.wish.records import ServiceRecord
from driver.wish.state import State
from driver.wish.values import TUNNEL_MTU, EndpointId, Mac, NetworkId, NodeId, mac_of, octets
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel

NET = "u4m9hzge31tsafr3nembuizn6"
SUBNETS = [Subnet(ip_network("10.62.0.0/24"), ip_address("10.62.0.1"))]
UNDERLAY = Underlay("eth0", 1500)
EP = "1190b22f0dca88e806d152ce692e707479adaf839f66ae938923d1e9d8514bf3"
EP2 = "c7d39e386b757474db70f29e3c769d374ac77bfa0e3be0f78e87cb6838a5ff83"


class Node:
    """A host: the whole driver on a fake kernel."""

    def __init__(self, number: int, cluster: MemoryStore, mode: Callable[[], Mode] = InSwarm) -> None:
        state = State(Host(NodeId(f"node{number}"), ip_address(f"192.0.2.{number}")))
        self.disk = MemoryDisk(state)
        self.kernel = FakeKernel()
        self.kernel.underlays = {state.host.vtep: UNDERLAY, ip_address("192.0.2.99"): UNDERLAY}
        self.cluster = cluster
        self.mode = mode
        self.audit_interval = 60.0
        self.begin()

    def begin(self) -> None:
        self.wish = Wish(self.disk)
        self.reconciler = NetworkReconciler(self.wish, self.kernel, audit_interval=self.audit_interval)
        self.peering = Peering(self.wish, MemoryControlPlane(self.wish.state.host.id, self.cluster))
        self.overlay = Overlay(self.wish, self.reconciler, self.peering, self.mode())
        self.reconciler.start()
        self.peering.start()

    def end(self) -> None:
        self.peering.stop(leave=False)
        self.reconciler.stop()

    def create(self, options: dict[str, str] | None = None, network: str = NET) -> None:
        self.overlay.create_network(network, options or {}, SUBNETS, internal=False)

    def attach(self, endpoint: str, address: str, network: str = NET) -> None:
        self.overlay.create_endpoint(network, endpoint, [ip_interface(f"{address}/24")], None, {})
        self.kernel.take(self.overlay.join(network, endpoint, "/run/docker/netns/x").interface)

    def detach(self, endpoint: str, network: str = NET) -> None:
        self.overlay.leave(network, endpoint)
        self.overlay.delete_endpoint(network, endpoint)

    def have(self, network: str = NET) -> KernelState:
        """The kernel's objects, in one piece although the engine thread may be at work."""
        name = namespace_name(NetworkId(network))
        return {key: obj for key, obj in self.kernel.all_objects().items() if key.place == name}

    def rows(self, network: str = NET) -> dict[str, str]:
        have = self.have(network)
        fdb = {o.mac: str(o.vtep) for o in have.values() if isinstance(o, FdbEntry) and o.mac != FLOOD_MAC}
        return {
            str(o.address): fdb[o.mac] for o in have.values() if isinstance(o, Neighbour) and o.mac in fdb
        }

    def shortcuts(self, network: str = NET) -> dict[str, str]:
        return {o.mac: o.port for o in self.have(network).values() if isinstance(o, Shortcut)}

    def floods(self, network: str = NET) -> set[str]:
        have = self.have(network)
        return {str(o.vtep) for o in have.values() if isinstance(o, FdbEntry) and o.mac == FLOOD_MAC}


@pytest.fixture
def cluster() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def nodes(cluster: MemoryStore) -> Iterator[list[Node]]:
    made = [Node(number, cluster) for number in (1, 2, 3)]
    yield made
    for node in made:
        node.end()


def test_a_claim_is_as_old_as_its_first_call_also_in_a_new_process(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    earliest = time.time_ns() // 1_000_000

    def claimed() -> int:
        node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
        return node.wish.state.endpoints[EndpointId(EP)].claimed

    first = claimed()
    assert earliest <= first <= time.time_ns() // 1_000_000
    assert claimed() == first
    node.end()
    node.begin()
    assert node.wish.state.endpoints[EndpointId(EP)].claimed == first
    assert claimed() == first
    assert {record.claimed for record in publication(node.wish.state).endpoints} == {first}


def test_a_claim_has_a_higher_number_than_all_that_were_seen(nodes: list[Node]) -> None:
    """Also where this host's clock is behind another's by years."""
    node = nodes[0]
    node.create()
    ahead = 9_000_000_000_000
    node.wish.change(lambda state: replace(state, peers=replace(state.peers, latest=ahead)))
    node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    node.overlay.create_endpoint(NET, "f" * 64, [ip_interface("10.62.0.5/24")], None, {})
    numbers = [endpoint.claimed for endpoint in node.wish.state.endpoints.values()]
    assert numbers == [ahead + 1, ahead + 2]


def test_nothing_is_made_before_the_first_join_and_nothing_is_left_after_the_last(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    assert list(node.kernel.namespaces()) == []
    attachment = node.overlay.join(NET, EP, "/run/docker/netns/x")
    assert attachment.interface == container_name(EndpointId(EP))
    assert len(attachment.interface) <= 15
    kinds = {key.kind for key in node.have()}
    assert kinds == {Namespace.kind, Bridge.kind, BridgeAddress.kind, Vxlan.kind, Port.kind, Shortcut.kind}
    node.detach(EP)
    assert _soon(lambda: list(node.kernel.namespaces()) == [])
    node.overlay.delete_network(NET)
    assert node.wish.state.networks == {}


def test_each_container_has_a_shortcut_but_not_two_of_one_mac(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    mac = Mac("02:42:0a:3e:00:04")
    node.attach(EP, "10.62.0.4")
    assert node.shortcuts() == {mac: port_name(EndpointId(EP))}
    node.overlay.create_endpoint(NET, EP2, [ip_interface("10.62.0.5/24")], mac, {})
    node.kernel.take(node.overlay.join(NET, EP2, "/run/docker/netns/x").interface)
    assert _soon(lambda: node.shortcuts() == {})
    node.detach(EP)
    assert _soon(lambda: node.shortcuts() == {mac: port_name(EndpointId(EP2))})


def test_a_shortcut_that_the_kernel_refuses_costs_no_call_and_no_row(
    nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    node, other = nodes[:2]
    for each in (node, other):
        each.create()
    node.kernel.fail_next(Shortcut.kind, errno.EPERM, times=1000)
    node.attach(EP, "10.62.0.4")
    other.attach(EP2, "10.62.0.5")
    assert other.rows() == {"10.62.0.4": "192.0.2.1"}
    assert _soon(lambda: node.rows() == {"10.62.0.5": "192.0.2.2"})
    assert node.shortcuts() == {}
    assert "shortcut" in caplog.text
    node.kernel.heal()
    assert _soon(lambda: len(node.shortcuts()) == 1)
    node.attach("ab" + EP[2:], "10.62.0.6")
    node.kernel.fail_next(Shortcut.kind, errno.EPERM, times=1000)
    node.detach(EP)
    node.detach("ab" + EP[2:])
    node.overlay.delete_network(NET)
    assert list(node.kernel.namespaces()) == []


def test_a_kernel_without_shortcuts_does_without_them(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.attach(EP, "10.62.0.4")
    node.end()
    node.kernel.shortcuts = False
    node.begin()
    assert _soon(lambda: node.shortcuts() == {})
    node.attach(EP2, "10.62.0.5")
    assert node.shortcuts() == {}
    node.detach(EP2)
    assert node.reconciler.repairs == {}


def test_a_joined_container_is_known_everywhere_when_join_returns(nodes: list[Node]) -> None:
    one, two, three = nodes
    for node in nodes:
        node.create()
    one.attach(EP, "10.62.0.4")
    two.attach(EP2, "10.62.0.5")
    assert two.rows() == {"10.62.0.4": "192.0.2.1"}
    assert two.floods() == {"192.0.2.1"}
    assert _soon(lambda: one.rows() == {"10.62.0.5": "192.0.2.2"})
    assert list(three.kernel.namespaces()) == []
    two.detach(EP2)
    assert _soon(lambda: one.rows() == {} and one.floods() == set())


def test_the_mac_is_dockers_unless_the_engine_gives_one(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    assert (
        node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {}) == "02:42:0a:3e:00:04"
    )
    given = node.overlay.create_endpoint(
        NET, EP2, [ip_interface("10.62.0.5/24")], Mac("02:42:aa:bb:cc:dd"), {}
    )
    assert given is None, "a MAC that the engine gave must not be echoed"


def test_the_mac_of_an_ipv6_only_endpoint_has_46_bits_of_its_address() -> None:
    """With 32, some two of 10,000 endpoints had one, and only one of them could be reached."""
    count = 20_000
    macs = [mac_of(ip_address("fd00::") + number) for number in range(count)]
    assert macs == [mac_of(ip_address("fd00::") + number) for number in range(count)]
    values = [int.from_bytes(octets(mac)) for mac in macs]
    assert len(set(values)) == count
    ones = {bit: sum(value >> bit & 1 for value in values) / count for bit in range(48)}
    assert (ones.pop(41), ones.pop(40)) == (1, 0), "locally administered, unicast"
    assert all(0.45 < share < 0.55 for share in ones.values())


def test_an_answered_join_has_nothing_read_again(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine moves the container's device just then, and whoever reads waits for 20 ms until it has."""
    node, reads = nodes[0], []

    def at_rest() -> None:
        _, revision = node.wish.snapshot()
        node.reconciler.wait_applied(NetworkId(NET), revision, 30)

    def read(name: str, rows: Collection[Row] | None = None) -> KernelState:
        reads.append(name)
        return FakeKernel.read_place(node.kernel, name, rows)

    node.create()
    node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    assert _soon(lambda: NetworkId(NET) in node.wish.state.peers.synced)
    at_rest()
    monkeypatch.setattr(node.kernel, "read_place", read)
    node.overlay.join(NET, EP, "")
    at_rest()
    assert len(reads) == 2, "before the change, and after it"


def test_calls_may_be_repeated_and_come_for_unknown_objects(nodes: list[Node]) -> None:
    node = nodes[0]
    service = node.overlay
    service.delete_endpoint(NET, EP)
    service.leave(NET, EP)
    service.delete_network(NET)
    service.free_network(NET)
    for _ in range(2):
        node.create()
    for _ in range(2):
        service.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
        service.join(NET, EP, "")
    for _ in range(2):
        service.leave(NET, EP)
    for _ in range(2):
        service.delete_endpoint(NET, EP)
    assert _soon(lambda: list(node.kernel.namespaces()) == [])


def test_unknown_networks_and_endpoints_are_named(nodes: list[Node]) -> None:
    service = nodes[0].overlay
    with pytest.raises(NotFound, match=f"network {NET} is not known"):
        service.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    nodes[0].create()
    with pytest.raises(NotFound, match=f"endpoint {EP}"):
        service.join(NET, EP, "")


def test_delete_endpoint_without_leave_and_delete_network_with_endpoints(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.attach(EP, "10.62.0.4")
    node.attach(EP2, "10.62.0.5")
    node.overlay.delete_endpoint(NET, EP)
    assert _soon(lambda: port_name(EndpointId(EP)) not in str(node.have()))
    node.overlay.delete_network(NET)
    assert list(node.kernel.namespaces()) == []
    assert node.wish.state.endpoints == {}


def test_a_join_that_the_kernel_refuses_leaves_nothing_half_made(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    node.kernel.fail_next(Vxlan.kind, 17)
    with pytest.raises(KernelError):
        node.overlay.join(NET, EP, "")
    assert list(node.kernel.namespaces()) == []
    assert node.wish.state.endpoints[EndpointId(EP)].phase is Phase.CREATED
    node.overlay.join(NET, EP, "")
    assert namespace_name(NetworkId(NET)) in node.kernel.namespaces()


def test_one_networks_trouble_does_not_hold_up_another(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.overlay.create_network("othernetwork", {}, SUBNETS, internal=False)
    network = node.wish.state.networks[NetworkId(NET)]
    node.kernel.busy.add((network.segments[0].vni, network.port))
    with pytest.raises(KernelError):
        node.attach(EP, "10.62.0.4")
    node.attach(EP2, "10.62.0.5", "othernetwork")


def test_a_port_is_not_made_anew_when_its_container_died(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.attach(EP, "10.62.0.4")
    node.attach(EP2, "10.62.0.5")
    have = node.have()
    port = next(o for o in have.values() if isinstance(o, Port) and EP[:11] in o.name)
    node.kernel.lose(port.key)
    node.wish.change(lambda s: replace(s, host=replace(s.host, vtep=ip_address("192.0.2.99"))))
    assert _soon(lambda: _vxlan(node).local == ip_address("192.0.2.99"))
    assert port.key not in node.have()


def test_subnets_are_routed_by_the_own_gateway(nodes: list[Node]) -> None:
    other = Subnet(ip_network("10.63.0.0/24"), ip_address("10.63.0.1"))
    node = nodes[0]
    node.overlay.create_network(NET, {}, [*SUBNETS, other], internal=False)
    node.overlay.create_endpoint(NET, EP, [ip_interface("10.63.0.7/24")], None, {})
    routes = node.overlay.join(NET, EP, "").routes
    assert routes == (Route(SUBNETS[0].prefix, ip_address("10.63.0.1")), MULTICAST)


@pytest.mark.parametrize("fours", [1, 2, 20])
@pytest.mark.parametrize("sixes", [1, 2])
def test_an_endpoint_may_have_an_address_of_any_ipv4_and_any_ipv6_subnet(
    cluster: MemoryStore, fours: int, sixes: int
) -> None:
    """The engine takes the first subnet of each family that has room, or what the user asks for."""
    node = Node(1, cluster, Alone)
    four = [Subnet(ip_network(f"10.{n}.0.0/24"), ip_address(f"10.{n}.0.1")) for n in range(fours)]
    six = [Subnet(ip_network(f"fd00:{n}::/64"), ip_address(f"fd00:{n}::1")) for n in range(sixes)]
    try:
        node.overlay.create_network(NET, {}, [*four, *six], internal=False)
        for number, (v4, v6) in enumerate(itertools.product(four, six)):
            own = [ip_interface(f"{s.prefix[number + 4]}/{s.prefix.prefixlen}") for s in (v4, v6)]
            endpoint = f"{number:064x}"
            node.overlay.create_endpoint(NET, endpoint, own, None, {})
            routes = node.overlay.join(NET, endpoint, "").routes
            ways = {Route(s.prefix, v4.gateway) for s in four if s != v4 and v4.gateway}
            ways |= {Route(s.prefix, v6.gateway) for s in six if s != v6 and v6.gateway}
            assert set(routes) - {MULTICAST} == ways
        assert len(_vxlan(node).alias) <= ALIAS_MAX
    finally:
        node.end()


def test_addresses_outside_of_the_network_are_refused(nodes: list[Node]) -> None:
    nodes[0].create()
    with pytest.raises(BadRequest, match=r"10\.99\.0\.4.*10\.62\.0\.0/24"):
        nodes[0].overlay.create_endpoint(NET, EP, [ip_interface("10.99.0.4/24")], None, {})
    with pytest.raises(BadRequest, match="IPAM driver must give an address"):
        nodes[0].overlay.create_endpoint(NET, EP, [], None, {})


def test_a_services_virtual_address_is_refused_and_the_others_go_on(nodes: list[Node]) -> None:
    """As the engine gives it to a task's container that is disconnected and connected again by hand."""
    node = nodes[0]
    node.create()
    node.attach(EP, "10.62.0.4")
    vip = ip_address("10.62.0.2")
    service = ServiceRecord(NetworkId(NET), vip, "web", (ip_address("10.62.0.4"),))
    node.wish.change(lambda s: replace(s, services={NetworkId(NET): {vip: service}}))
    with pytest.raises(Conflict, match=r"10\.62\.0\.2 .* of service web.*docker service update --force web"):
        node.overlay.create_endpoint(NET, EP2, [ip_interface("10.62.0.2/24")], None, {})
    assert node.wish.state.endpoints.keys() == {EndpointId(EP)}
    node.overlay.create_endpoint(NET, EP2, [ip_interface("10.62.0.5/24")], None, {})
    late = replace(service, vip=ip_address("10.62.0.5"))
    node.wish.change(lambda s: replace(s, services={NetworkId(NET): {late.vip: late}}))
    node.overlay.create_endpoint(NET, EP2, [ip_interface("10.62.0.5/24")], None, {})


def test_a_live_duplicate_address_is_refused_outside_of_a_swarm(cluster: MemoryStore) -> None:
    node = Node(1, cluster, Alone)
    try:
        node.create()
        node.attach(EP, "10.62.0.4")
        with pytest.raises(Conflict, match=r"10\.62\.0\.4 is used by endpoint 1190b22f0dca"):
            node.attach(EP2, "10.62.0.4")
        assert node.overlay.in_use(SUBNETS[0].prefix, ip_address("10.62.0.4"))
        assert not node.overlay.in_use(ip_network("10.0.0.0/8"), ip_address("10.62.0.4"))
        node.overlay.leave(NET, EP)
        assert not node.overlay.in_use(SUBNETS[0].prefix, ip_address("10.62.0.4"))
        node.attach(EP2, "10.62.0.4")
    finally:
        node.end()


def test_a_vni_is_given_once_over_restarts_whoever_makes_the_second_network(cluster: MemoryStore) -> None:
    """By itself, and as the leader of a Swarm that the host has joined since."""
    node, old, new = Node(1, cluster, Alone), "a1" * 32, "b2" * 32
    try:
        node.create({"vni": "5000"}, old)
        node.end()
        node.begin()
        with pytest.raises(Conflict, match="5000 is used by another network"):
            node.create({"vni": "5000"}, new)
        node.overlay.delete_network(old)
        node.create({"vni": "5000"}, new)
        node.mode = InSwarm
        node.end()
        node.begin()
        assert "5000 is used" in node.overlay.allocate_network(NET, {"vni": "5000"}, SUBNETS)[REFUSED]
    finally:
        node.end()


def test_a_vtep_that_nobody_announced_is_a_clear_refusal(nodes: list[Node]) -> None:
    node = nodes[0]
    node.wish.change(lambda s: replace(s, host=replace(s.host, vtep=None)))
    node.create()
    with pytest.raises(Unsupported, match="PYOVERLAY_VTEP"):
        node.attach(EP, "10.62.0.4")
    node.overlay.node_discovered(ip_address("192.0.2.1"), is_self=True)
    node.overlay.join(NET, EP, "")


def test_a_vtep_on_no_device_is_a_clear_refusal(nodes: list[Node]) -> None:
    node = nodes[0]
    node.overlay.node_discovered(ip_address("192.0.2.50"), is_self=True)
    node.create()
    with pytest.raises(KernelError, match=r"192\.0\.2\.50 is on no device"):
        node.attach(EP, "10.62.0.4")
    node.kernel.underlays[ip_address("192.0.2.50")] = Underlay("eth0", 1400)
    node.overlay.join(NET, EP, "")
    assert _mtus(node) == {"bridge": 1350, "container": 1350, "port": TUNNEL_MTU, "tunnel": TUNNEL_MTU}


@pytest.mark.parametrize("vtep", ["127.0.0.1", "127.0.1.1", "::1", "0.0.0.0", "::"])
def test_an_advertised_address_that_leads_nowhere_is_a_clear_refusal(nodes: list[Node], vtep: str) -> None:
    one, two, _ = nodes
    one.kernel.underlays[ip_address(vtep)] = UNDERLAY
    one.overlay.node_discovered(ip_address(vtep), is_self=True)
    for node in (one, two):
        node.create()
    with pytest.raises(Unsupported, match=rf"advertises {vtep}.*init --advertise-addr.*PYOVERLAY_VTEP"):
        one.attach(EP, "10.62.0.4")
    two.attach(EP2, "10.62.0.5")
    assert two.rows() == {}, "nobody is told of it"
    one.overlay.node_discovered(ip_address("192.0.2.99"), is_self=True)
    one.overlay.join(NET, EP, "")
    assert _soon(lambda: two.rows() == {"10.62.0.4": "192.0.2.99"})


@pytest.mark.parametrize(("vtep", "free"), [("203.0.113.11", None), ("2001:db8::11", "::")])
def test_a_vtep_that_a_router_translates_is_told_to_others_and_bound_to_nothing(
    nodes: list[Node], vtep: str, free: str | None
) -> None:
    one, two, _ = nodes
    translated, bound = Underlay("eth0", 1500, has_vtep=False), ip_address(vtep)
    one.kernel.underlays[bound] = translated
    one.overlay.node_discovered(bound, is_self=True)
    two.kernel.underlays[bound + 1] = UNDERLAY
    two.overlay.node_discovered(bound + 1, is_self=True)
    for node, endpoint, address in ((one, EP, "10.62.0.4"), (two, EP2, "10.62.0.5")):
        node.create()
        node.attach(endpoint, address)
    assert _vxlan(one).local == (ip_address(free) if free else None)
    assert _vxlan(two).local == bound + 1
    assert _soon(lambda: two.rows() == {"10.62.0.4": vtep} and one.rows() == {"10.62.0.5": str(bound + 1)})
    one.kernel.move_underlay(bound, UNDERLAY)
    assert _soon(lambda: _vxlan(one).local == bound)
    assert one.rows() == {"10.62.0.5": str(bound + 1)}
    one.kernel.move_underlay(bound, translated)
    assert _soon(lambda: _vxlan(one).local == (ip_address(free) if free else None))
    assert one.rows() == {"10.62.0.5": str(bound + 1)}


@pytest.mark.parametrize(
    ("options", "underlay", "mtu"),
    [
        ({"mtu": "1279"}, 1500, 1279),
        ({"com.docker.network.driver.mtu": "1329"}, 1500, 1279),
        ({}, 1329, 1279),
        ({"mtu": "1280"}, 576, None),
        ({"com.docker.network.driver.mtu": "1330"}, 576, None),
        ({}, 1330, None),
    ],
)
def test_ipv6_with_too_small_an_mtu_is_refused_at_create(
    cluster: MemoryStore, options: dict[str, str], underlay: int, mtu: int | None
) -> None:
    node = Node(1, cluster, Alone)
    six = Subnet(ip_network("fd00::/64"), ip_address("fd00::1"))
    try:
        node.kernel.move_underlay(node.wish.state.host.vtep, Underlay("eth0", underlay))
        assert _soon(lambda: node.reconciler.underlay.mtu == underlay)
        node.overlay.create_network(EP, options, SUBNETS, internal=False)
        if mtu is None:
            node.overlay.create_network(NET, options, [*SUBNETS, six], internal=False)
            return
        with pytest.raises(BadRequest, match=rf"fd00::/64.*1280.*would have {mtu}: .*IPv4 subnets only"):
            node.overlay.create_network(NET, options, [*SUBNETS, six], internal=False)
        assert NetworkId(NET) not in node.wish.state.networks
    finally:
        node.end()


def test_an_underlay_that_has_become_too_small_for_ipv6_refuses_a_join_with_a_sentence(
    cluster: MemoryStore,
) -> None:
    node = Node(1, cluster, Alone)
    six = Subnet(ip_network("fd00::/64"), ip_address("fd00::1"))
    try:
        node.overlay.create_network(NET, {}, [*SUBNETS, six], internal=False)
        own = [ip_interface("10.62.0.4/24"), ip_interface("fd00::4/64")]
        node.overlay.create_endpoint(NET, EP, own, None, {})
        node.kernel.move_underlay(node.wish.state.host.vtep, Underlay("eth0", 1300))
        assert _soon(lambda: node.reconciler.underlay.mtu == 1300)
        with pytest.raises(BadRequest, match=r"would have 1250.*here 1300"):
            node.overlay.join(NET, EP, "")
    finally:
        node.end()


def test_a_lower_mtu_is_for_new_containers_and_the_bridge(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create()
    node.attach(EP, "10.62.0.4")
    before = _mtus(node)
    assert before == {"bridge": 1450, "container": 1450, "port": TUNNEL_MTU, "tunnel": TUNNEL_MTU}
    node.kernel.applied.clear()
    node.kernel.move_underlay(node.wish.state.host.vtep, Underlay("eth0", 1400))
    assert _soon(lambda: _mtus(node) == before | {"bridge": 1350})
    assert {op.want.key.kind for op in node.kernel.applied if isinstance(op, Set)} == {Bridge.kind}
    node.detach(EP)
    node.attach(EP2, "10.62.0.5")
    assert _mtus(node) == before | {"bridge": 1350, "container": 1350}


def test_what_other_nodes_announce_of_themselves_is_only_a_hint(nodes: list[Node]) -> None:
    before = nodes[0].wish.state
    nodes[0].overlay.node_discovered(ip_address("192.0.2.2"), is_self=False)
    nodes[0].overlay.node_lost(ip_address("192.0.2.2"))
    assert nodes[0].wish.state == before


def test_networks_wait_while_the_scope_is_about_to_change(nodes: list[Node]) -> None:
    node = nodes[0]
    service = Overlay(node.wish, node.reconciler, node.peering, Alone(lasts=lambda: False))
    with pytest.raises(Unsupported, match=r"joined a Swarm.*try again"):
        service.check_network({})
    with pytest.raises(Unsupported, match=r"joined a Swarm.*try again"):
        service.create_network(NET, {}, SUBNETS, internal=False)


def test_a_network_that_an_engine_makes_alone_is_refused_in_a_swarm_unless_it_is_from_before(
    nodes: list[Node],
) -> None:
    node = nodes[0]
    alone, old = "a1" * 32, "b2" * 32
    before = Overlay(node.wish, node.reconciler, node.peering, Alone())
    before.create_network(old, {}, SUBNETS, internal=False)
    node.create(network=old)
    with pytest.raises(Unsupported, match=r"network a1a1a1a1a1a1.*for this host alone: try again"):
        node.create(network=alone)
    assert NetworkId(alone) not in node.wish.state.networks


class TestAllocation:
    """The Swarm leader's part."""

    def test_every_option_is_echoed_with_the_choice(self, nodes: list[Node]) -> None:
        answer = nodes[0].overlay.allocate_network(NET, {"com.docker.network.driver.mtu": "1400"}, SUBNETS)
        assert answer["com.docker.network.driver.mtu"] == "1400"
        assert int(answer["vni"]) >= 1 << 23
        assert answer["vxlan_port"] == "4789"

    @pytest.mark.parametrize(
        ("options", "fixed", "swarm", "port"),
        [
            ({}, None, 7789, "7789"),
            ({"vxlan_port": "4790"}, None, 7789, "4790"),
            ({}, 4789, 7789, "4789"),
            ({}, 8472, None, "8472"),
            ({"vxlan_port": "4790"}, 8472, 7789, "4790"),
        ],
    )
    def test_the_port_is_the_users_else_the_settings_else_the_swarms(
        self, nodes: list[Node], options: dict[str, str], fixed: int | None, swarm: int | None, port: str
    ) -> None:
        one, two, _ = nodes
        overlay = Overlay(one.wish, one.reconciler, one.peering, InSwarm(), fixed_port=fixed)
        one.wish.change(lambda s: replace(s, host=replace(s.host, swarm_port=swarm)))
        answer = overlay.allocate_network(NET, options, SUBNETS)
        assert answer["vxlan_port"] == port
        two.create(dict(answer))
        two.attach(EP, "10.62.0.4")
        assert _vxlan(two).port == int(port), "the answer tells the other hosts, whatever they know"
        one.wish.change(lambda s: replace(s, host=replace(s.host, swarm_port=9999)))
        assert overlay.allocate_network(NET, answer, SUBNETS) == answer, "a network keeps its port"

    def test_a_host_by_itself_does_not_use_a_former_swarms_port(self, cluster: MemoryStore) -> None:
        node = Node(1, cluster, Alone)
        try:
            node.wish.change(lambda s: replace(s, host=replace(s.host, swarm_port=7789)))
            node.create()
            assert node.wish.state.networks[NetworkId(NET)].port == 4789
        finally:
            node.end()

    def test_any_leader_gives_the_same_answer_and_honours_a_former_ones(self, nodes: list[Node]) -> None:
        first = nodes[0].overlay.allocate_network(NET, {"mtu": "1400"}, SUBNETS)
        assert nodes[1].overlay.allocate_network(NET, {"mtu": "1400"}, SUBNETS) == first
        assert nodes[0].overlay.allocate_network(NET, first, SUBNETS) == first
        assert nodes[2].overlay.allocate_network(NET, first, SUBNETS) == first

    def test_a_stale_record_gives_way_to_a_replay(self, nodes: list[Node]) -> None:
        service = nodes[0].overlay
        old = service.allocate_network("oldnetwork", {"vni": "70001"}, SUBNETS)
        assert service.allocate_network("newnetwork", old, SUBNETS) == old
        assert "oldnetwork" not in nodes[0].wish.state.allocations

    def test_a_vni_in_use_is_refused_on_the_node_with_the_leaders_sentence(self, nodes: list[Node]) -> None:
        service = nodes[0].overlay
        service.allocate_network("oldnetwork", {"vni": "70001"}, SUBNETS)
        answer = service.allocate_network(NET, {"vni": "70001"}, SUBNETS)
        assert "70001 is used" in answer[REFUSED]
        nodes[1].create(dict(answer))
        with pytest.raises(BadRequest, match="70001 is used"):
            nodes[1].attach(EP, "10.62.0.4")
        service.free_network("oldnetwork")
        assert REFUSED not in service.allocate_network(NET, answer, SUBNETS)

    def test_bad_options_reach_the_node_as_they_are_explained(self, nodes: list[Node]) -> None:
        answer = nodes[0].overlay.allocate_network(NET, {"mtu": "12"}, SUBNETS)
        nodes[1].overlay.check_network(answer)  # Engine 28 asks before it makes the network for a task
        nodes[1].create(dict(answer))
        with pytest.raises(BadRequest, match="mtu: '12'"):
            nodes[1].attach(EP, "10.62.0.4")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vnni": "5"}, "vnni"),
        ({"vni": "5,6"}, "one VNI for each"),
        ({REFUSED: "the leader's words"}, "words"),
    ],
)
def test_a_refused_network_of_a_swarm_tells_whoever_wants_an_endpoint(
    nodes: list[Node], options: dict[str, str], reason: str
) -> None:
    node = nodes[0]
    node.create(options)
    for _ in range(2):
        with pytest.raises(BadRequest, match=reason):
            node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
        with pytest.raises(BadRequest, match=reason):
            node.overlay.join(NET, EP, "")
        assert list(node.kernel.namespaces()) == []
        said = publication(node.wish.state)
        assert not said.networks
        assert not said.endpoints
        assert not node.wish.state.networks
        assert not node.wish.state.allocations
        node.end()
        node.begin()
    node.overlay.delete_network(NET)
    assert not node.wish.state.refused
    with pytest.raises(NotFound):
        node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})


def test_a_refused_network_may_come_again_without_its_fault_and_with_it(nodes: list[Node]) -> None:
    node = nodes[0]
    node.create({"vnni": "5"})
    node.create({})
    node.attach(EP, "10.62.0.4")
    node.create({"vnni": "5"})
    assert not node.wish.state.endpoints
    with pytest.raises(BadRequest, match="vnni"):
        node.attach(EP2, "10.62.0.5")
    assert _soon(lambda: list(node.kernel.namespaces()) == [])


def test_a_refused_network_holds_no_vni(cluster: MemoryStore) -> None:
    node, old, new = Node(1, cluster), NET, "b2" * 12
    try:
        node.create({"vni": "5000", "vnni": "5"}, old)
        answer = node.overlay.allocate_network(new, {"vni": "5000"}, SUBNETS)
        assert answer["vni"] == "5000"
    finally:
        node.end()


def test_by_itself_a_host_refuses_a_network_at_once(cluster: MemoryStore) -> None:
    node = Node(1, cluster, Alone)
    try:
        with pytest.raises(BadRequest, match="vnni"):
            node.overlay.check_network({"vnni": "5"})
        with pytest.raises(BadRequest, match="vnni"):
            node.create({"vnni": "5"}, "a1" * 32)
        assert not node.wish.state.refused
    finally:
        node.end()


def test_what_may_pass_soon_is_refused_at_once_also_in_a_swarm(cluster: MemoryStore) -> None:
    """A network that is recorded as refused stays so; a task that is rejected is tried again."""
    node = Node(1, cluster, lambda: InSwarm(lambda: False))
    try:
        with pytest.raises(Unsupported, match="try again"):
            node.create()
        assert not node.wish.state.refused
    finally:
        node.end()


SIX = Subnet(ip_network("fd00::/64"), ip_address("fd00::1"))


def test_ipv6_that_an_engine_of_a_swarm_draws_by_itself_is_left_aside(
    nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = nodes
    two.create()
    one.overlay.create_network(NET, {}, [*SUBNETS, SIX], internal=False)
    assert "fd00::/64" in caplog.text
    assert "IPv4 works" in caplog.text
    both = [ip_interface("10.62.0.4/24"), ip_interface("fd00::4/64")]
    assert one.overlay.create_endpoint(NET, EP, both, None, {}) == mac_of(both[0].ip)
    one.kernel.take(one.overlay.join(NET, EP, "/run/docker/netns/x").interface)
    two.attach(EP2, "10.62.0.5")
    assert _soon(lambda: two.rows() == {"10.62.0.4": "192.0.2.1"})
    assert _soon(lambda: one.rows() == {"10.62.0.5": "192.0.2.2"})
    vnis = {o.vni for node in (one, two) for o in node.have().values() if isinstance(o, Vxlan)}
    assert len(vnis) == 1


def test_without_ipv4_a_network_of_a_swarm_is_refused(nodes: list[Node]) -> None:
    nodes[0].overlay.create_network(NET, {}, [SIX], internal=False)
    with pytest.raises(BadRequest, match=r"fd00::/64.*IPv4"):
        nodes[0].overlay.create_endpoint(NET, EP, [ip_interface("fd00::4/64")], None, {})


def test_multicast_leaves_by_the_first_network_of_a_container(nodes: list[Node]) -> None:
    """The kernel refuses a second route to the same groups, and with it the container's start."""
    node, nets = nodes[0], ("a1" * 12, "b2" * 12, "c3" * 12)
    eps = [str(number) * 64 for number in range(4)]
    for net in nets:
        node.create(network=net)

    def join(net: str, endpoint: str, sandbox: str) -> bool:
        address = f"10.62.0.{eps.index(endpoint) + 4}/24"
        node.overlay.create_endpoint(net, endpoint, [ip_interface(address)], None, {})
        attached = node.overlay.join(net, endpoint, sandbox)
        node.kernel.take(attached.interface)
        return MULTICAST in attached.routes

    assert join(nets[0], eps[0], "/run/one")
    assert not join(nets[1], eps[1], "/run/one")
    assert join(nets[0], eps[2], "/run/two")
    node.end()
    node.begin()
    node.overlay.join(nets[1], eps[1], "/run/one")
    assert not node.wish.state.endpoints[EndpointId(eps[1])].multicast
    node.detach(eps[0], nets[0])
    assert join(nets[2], eps[3], "/run/one")


def test_ipv6_alone_needs_no_route_for_multicast(cluster: MemoryStore) -> None:
    node = Node(1, cluster, Alone)
    try:
        node.overlay.create_network(NET, {}, [SIX], internal=True)
        node.overlay.create_endpoint(NET, EP, [ip_interface("fd00::4/64")], None, {})
        assert node.overlay.join(NET, EP, "").routes == ()
    finally:
        node.end()


def test_a_restart_adopts_and_changes_nothing(nodes: list[Node]) -> None:
    one, two, _ = nodes
    for node in nodes:
        node.create()
    one.attach(EP, "10.62.0.4")
    two.attach(EP2, "10.62.0.5")
    assert _soon(lambda: one.rows() == {"10.62.0.5": "192.0.2.2"})
    one.end()
    before = one.have()
    one.kernel.applied.clear()
    one.begin()
    assert _soon(lambda: NetworkId(NET) in one.wish.state.peers.synced)
    _, revision = one.wish.snapshot()
    one.reconciler.wait_applied(NetworkId(NET), revision, 30)
    assert one.have() == before
    assert one.kernel.applied == []


def test_after_a_restart_with_the_store_away_nothing_is_removed(
    nodes: list[Node], cluster: MemoryStore
) -> None:
    one, two, _ = nodes
    for node in nodes:
        node.create()
    one.attach(EP, "10.62.0.4")
    two.attach(EP2, "10.62.0.5")
    assert _soon(lambda: one.rows() == {"10.62.0.5": "192.0.2.2"})
    one.end()
    cluster.set_away(True)
    one.begin()
    _, revision = one.wish.snapshot()
    one.reconciler.wait_applied(NetworkId(NET), revision, 30)
    assert one.rows() == {"10.62.0.5": "192.0.2.2"}
    two.detach(EP2)
    cluster.set_away(False)
    assert _soon(lambda: one.rows() == {})


def test_a_new_empty_store_cuts_nobody_off(nodes: list[Node], cluster: MemoryStore) -> None:
    one, two, _ = nodes
    for node in nodes:
        node.create()
    one.attach(EP, "10.62.0.4")
    two.attach(EP2, "10.62.0.5")
    assert _soon(lambda: one.rows() == {"10.62.0.5": "192.0.2.2"})
    one.kernel.applied.clear()
    cluster.replace()
    two.detach(EP2)
    assert _soon(lambda: one.rows() == {})


def test_fifty_containers_at_once(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.create()
    two.create()
    two.attach(EP, "10.62.0.200")
    threads = [
        threading.Thread(target=one.attach, args=(f"{n:02d}{EP2[2:]}", f"10.62.0.{n}")) for n in range(10, 60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _soon(lambda: len(two.rows()) == 50)
    assert one.wish.state.joining == {}


def test_a_join_that_ends_late_leaves_a_newer_one_its_pair(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint is deleted and made again in between, and the kernel work waits for the old one."""
    one = nodes[0]
    one.create()
    one.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
    wait, calls, answer = one.reconciler.wait_applied, itertools.count(), threading.Event()

    def late(*args: Any) -> None:
        if next(calls) == 1:  # the older Join's last
            assert answer.wait(30)
        else:
            wait(*args)

    monkeypatch.setattr(one.reconciler, "wait_applied", late)
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(one.overlay.join, NET, EP, "/run/old")
        assert _soon(lambda: _has_port(one))
        one.overlay.delete_endpoint(NET, EP)
        assert _soon(lambda: not _has_port(one))
        with one.kernel.holding():
            one.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
            newer = pool.submit(one.overlay.join, NET, EP, "/run/new")
            assert _soon(lambda: EndpointId(EP) in one.wish.state.joining)
            answer.set()
            older.result(30)
        newer.result(30)
    assert _has_port(one)
    assert one.wish.state.joining == {}


def _has_port(node: Node) -> bool:
    return any(isinstance(obj, Port) for obj in node.have().values())


def _mtus(node: Node) -> dict[str, int]:
    """Of a node with one container."""
    have = node.have().values()
    (bridge,) = (o for o in have if isinstance(o, Bridge))
    (port,) = (o for o in have if isinstance(o, Port))
    tunnel = _vxlan(node)
    return {"bridge": bridge.mtu, "container": port.peer_mtu, "port": port.mtu, "tunnel": tunnel.mtu}


def _vxlan(node: Node) -> Vxlan:
    have = node.have()
    return next(o for o in have.values() if isinstance(o, Vxlan))


def _soon(question: Callable[[], object]) -> bool:
    """Tell whether it comes true; the patience is for a busy machine, and costs nothing when all is well."""
    deadline = time.monotonic() + 30
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
