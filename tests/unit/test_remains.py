"""Lost records, made again from what the kernel has and the engine answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.cluster.peering import Peering
from driver.kernel.kinds import Namespace, Port
from driver.kernel.names import namespace_name
from driver.kernel.objects import index
from driver.reconcile.adoption import find_remains, read_remains
from driver.reconcile.desired import desired
from driver.swarm.docker_api import EngineAway
from driver.swarm.recovery import LostPool, Recovery, read_network
from driver.wish.model import Endpoint, Host, Network, Peer, PeerNode, Peers, Phase, Segment, Subnet, Underlay
from driver.wish.remains import recovered
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni
from driver.wish.wish import Wish
from ipam.manager import AddressManager
from ipam.pools import IpamState, Space
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel
from tests.kernel.hosts import eventually

ALONE = NetworkId("a" * 64)
SWARM = NetworkId("u4m9hzge31tsafr3nembuizn6")
ONE, TWO = EndpointId("1" * 64), EndpointId("2" * 64)
VTEP = ip_address("192.0.2.1")
UNDERLAY = Underlay("eth0", 1500)


def subnets(*texts: str) -> tuple[Subnet, ...]:
    """Networks with their first address as gateway."""
    return tuple(Subnet(ip_network(text), ip_network(text)[1]) for text in texts)


def lost(network: Network, *endpoints: Endpoint) -> State:
    """What a host wished before it lost its records, with a peer on another host."""
    peer = Peer(Mac("02:42:0a:01:00:63"), ip_address("192.0.2.9"), NodeId("other"))
    address = network.segments[0].subnets[0].prefix[99]
    return State(
        Host(NodeId("former"), VTEP),
        networks={network.id: network},
        endpoints={endpoint.id: endpoint for endpoint in endpoints},
        peers=Peers({NodeId("other"): PeerNode(peer.vtep)}, {network.id: {address: peer}}),
    )


def endpoint(id_: EndpointId, network: NetworkId, *addresses: str) -> Endpoint:
    mac = Mac("02:42:00:00:00:77")
    return Endpoint(id_, network, tuple(map(ip_interface, addresses)), mac, Phase.JOINED, multicast=True)


def listed(network: Network, options: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """What the engine answers about a network, without the gateways."""
    prefixes = [subnet.prefix for segment in network.segments for subnet in segment.subnets]
    config = [{"Subnet": str(prefix)} for prefix in prefixes]
    scope = "local" if len(network.id) == 64 else "swarm"
    return {
        "Id": network.id,
        "Driver": "pyoverlay:latest",
        "Scope": scope,
        "Internal": network.internal,
        "IPAM": {"Driver": "default", "Config": config},
        "Options": dict(options),
        **more,
    }


def containers(*endpoints: Endpoint) -> dict[str, Any]:
    return {f"c{e.id}": {"EndpointID": e.id, "MacAddress": e.mac} for e in endpoints}


CASES = {
    "alone, its VNI chosen by us": (
        Network(ALONE, (Segment(Vni(9_000_000), subnets("10.1.0.0/24")),)),
        {},
        [endpoint(ONE, ALONE, "10.1.0.5/24")],
    ),
    "alone, both families, all options": (
        Network(ALONE, (Segment(Vni(7), subnets("10.1.0.0/24", "fd00::/64")),), 4790, 1400, None, True),
        {"vni": "7", "vxlan_port": "4790", "mtu": "1400"},
        [endpoint(ONE, ALONE, "10.1.0.5/24", "fd00::5/64"), endpoint(TWO, ALONE, "10.1.0.6/24")],
    ),
    "in a Swarm, several subnets": (
        Network(SWARM, tuple(Segment(Vni(70 + n), subnets(f"10.{n}.0.0/24")) for n in range(3))),
        {"vni": "70,71,72", "vxlan_port": "4789"},
        [endpoint(ONE, SWARM, "10.0.0.5/24"), endpoint(TWO, SWARM, "10.2.0.6/24")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_that_the_kernel_needs_is_as_before(case: str) -> None:
    network, options, endpoints = CASES[case]
    before = lost(network, *endpoints)
    kernel = desired(before, network.id, UNDERLAY)
    told = read_network(listed(network, options), containers(*endpoints))
    fresh = State(Host(NodeId("former")))  # the engine has not said its address yet
    after = recovered(fresh, told, read_remains(kernel, ()), 4789, 0.0)
    assert after.host == before.host
    assert after.networks == before.networks
    assert after.endpoints == before.endpoints
    assert desired(after, network.id, UNDERLAY) == kernel, "not a device, nor a row, changes"
    assert network.id not in after.doubtful
    assert recovered(after, told, read_remains(kernel, ()), 4789, 1.0) is after


def test_what_no_container_has_is_no_endpoint() -> None:
    network, options, endpoints = CASES["alone, its VNI chosen by us"]
    kernel = desired(lost(network, *endpoints), network.id, UNDERLAY)
    (port,) = (obj for obj in kernel.values() if isinstance(obj, Port))
    remains = read_remains(kernel, [port.peer])
    assert remains is not None
    after = recovered(
        State(Host(NodeId("x"), VTEP)), read_network(listed(network, options), {}), remains, 4789, 0.0
    )
    assert not after.endpoints
    assert network.id in after.doubtful, "it may have been removed meanwhile"


def test_without_the_engines_word_the_kernel_tells_the_mac() -> None:
    network, options, endpoints = CASES["alone, its VNI chosen by us"]
    remains = read_remains(desired(lost(network, *endpoints), network.id, UNDERLAY), ())
    told = read_network(listed(network, options), {})
    assert recovered(State(Host(NodeId("x"), VTEP)), told, remains, 4789, 0.0).endpoints[ONE] == endpoints[0]


def test_a_cut_alias_names_no_wrong_subnet() -> None:
    """The kernel keeps 255 bytes: what is left of the last subnet may look like another one."""
    network = Network(ALONE, (Segment(Vni(7), subnets("fd00::/64", *(f"10.{n}.0.0/24" for n in range(30)))),))
    state = lost(network, endpoint(ONE, ALONE, "10.1.0.5/24"))
    kernel = desired(state, ALONE, UNDERLAY)
    remains = read_remains(kernel, ())
    assert remains is not None
    assert set(remains.vnis) < {s.prefix for s in network.segments[0].subnets}
    told = read_network(listed(network, {}), {})
    after = recovered(State(Host(NodeId("x"), VTEP)), told, remains, 4789, 0.0)
    assert after.networks == state.networks


def test_an_idle_network_of_this_host_comes_back_and_a_swarms_does_not() -> None:
    """The engine makes a Swarm's network anew when it needs it; the leader's choice of VNI is kept."""
    alone, options, _ = CASES["alone, both families, all options"]
    swarm, chosen, _ = CASES["in a Swarm, several subnets"]
    state = State(Host(NodeId("x"), VTEP))
    for network, given in ((alone, options), (swarm, chosen)):
        state = recovered(state, read_network(listed(network, given), {}), None, 4789, 0.0)
    assert state.networks == {ALONE: alone}
    assert state.allocations == {SWARM: (70, 71, 72)}
    assert state.doubtful == {ALONE}


def test_what_the_engine_says_of_a_gateway_counts_where_the_kernel_has_none() -> None:
    config = [
        {"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.254", "AuxiliaryAddresses": {"it": "10.1.0.9"}},
        {"Subnet": "10.2.0.0/24", "IPRange": "10.2.0.128/25"},
        {"Subnet": "10.3.0.8/32", "Gateway": "10.3.0.8/32"},
    ]
    network, _, _ = CASES["alone, its VNI chosen by us"]
    told = read_network({**listed(network, {}), "IPAM": {"Config": config}}, {})
    found = [(str(s.gateway), set(map(str, s.reserved))) for s in told.subnets]
    assert found == [("10.1.0.254", {"10.1.0.9"}), ("10.2.0.129", set()), ("10.3.0.8", set())]


def test_the_namespaces_of_others_are_no_remains() -> None:
    kernel = FakeKernel()
    kernel.objects = dict(index([Namespace("pyoverlay-somebody"), Namespace(namespace_name(ALONE))]))
    assert find_remains(kernel, ()) == {}


class Engine:
    """What the recovery asks of the engine's API."""

    def __init__(self, *networks: dict[str, Any], containers: Mapping[str, Any] | None = None) -> None:
        self.networks = list(networks)
        self.containers = containers or {}
        self.away = False
        self.asked = 0

    def list(self, what: str) -> list[dict[str, Any]]:
        assert what == "networks"
        self.asked += 1
        if self.away:
            raise EngineAway("away")
        return self.networks

    def network(self, network: str) -> dict[str, Any]:
        return {"Id": network, "Containers": self.containers}

    def sandbox(self, container: str) -> str:
        return f"/run/docker/netns/{container[:3]}"


def recovery(wish: Wish, engine: Engine, remains: Mapping[NetworkId, Any]) -> Recovery:
    return Recovery(
        wish,
        engine,  # type: ignore[arg-type]
        lambda: remains,
        lambda: "pyoverlay:latest",
        lambda pool: None,
        over=lambda: None,
    )


def test_it_asks_until_the_engine_answers_and_spares_what_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("driver.swarm.recovery._RETRY", 0.01)
    network, options, endpoints = CASES["alone, both families, all options"]
    remains = read_remains(desired(lost(network, *endpoints), network.id, UNDERLAY), ())
    others = [
        {**listed(network, {}), "Id": "b" * 64, "Driver": "bridge"},
        {**listed(network, {}), "Id": "c" * 64, "IPAM": {"Config": [{"Subnet": "what"}]}},
        {**listed(network, {"colour": "blue"}), "Id": "d" * 64},
    ]
    engine = Engine(*others, listed(network, options), containers=containers(*endpoints))
    engine.away = True
    wish = Wish(MemoryDisk(State(Host(NodeId("x"), VTEP))))
    seeker = recovery(wish, engine, {network.id: remains})
    seeker.start()
    try:
        assert eventually(lambda: engine.asked > 3)
        seeker.wait(0.01)
        assert not wish.state.networks
        assert seeker.is_missing_containers()
        engine.away = False
        seeker.wait(10)
        assert set(wish.state.networks) == {network.id}
        assert eventually(lambda: all(e.sandbox for e in wish.state.endpoints.values()))
        assert {e.id: replace(e, sandbox="") for e in wish.state.endpoints.values()} == {
            e.id: e for e in endpoints
        }
        assert eventually(lambda: not seeker.threads[0].alive), "it has done its work"
    finally:
        seeker.stop()
    assert sum("when the engine tells" in message for message in caplog.messages) == 1, "said once"
    told = [message.split()[1][:3] for message in caplog.messages if "cannot be recovered" in message]
    assert told == ["ccc", "ddd"]


def test_pools_of_this_host_come_back_with_the_leases_that_are_known() -> None:
    """Not the Swarm's: the engine does not tell of all its addresses, and none may be given twice."""
    swarm, chosen, _ = CASES["in a Swarm, several subnets"]
    alone, options, endpoints = CASES["alone, its VNI chosen by us"]
    config = [{"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.0/25", "AuxiliaryAddresses": {"it": "10.1.0.9"}}]
    ipam = {"IPAM": {"Driver": "pyoverlay:latest", "Config": config}}
    engine = Engine(listed(swarm, chosen, **ipam), listed(alone, options, **ipam))
    remains = read_remains(desired(lost(alone, *endpoints), alone.id, UNDERLAY), ())
    pools: list[LostPool] = []
    wish = Wish(MemoryDisk(State(Host(NodeId("x"), VTEP))))
    Recovery(
        wish,
        engine,  # type: ignore[arg-type]
        lambda: {alone.id: remains} if remains else {},
        lambda: "pyoverlay:latest",
        pools.append,
        over=lambda: None,
    )._recover()
    taken = {ip_address("10.1.0.5"), ip_address("10.1.0.9")}
    kept = ip_network("10.1.0.0/25")
    assert pools == [LostPool(ip_network("10.1.0.0/24"), kept, ip_address("10.1.0.1"), taken)]


class Leases:
    """A disk for address management, in memory."""

    def load(self) -> IpamState | None:
        return None

    def save(self, value: IpamState) -> None:
        """Nobody reads it again."""


def test_a_pool_that_is_there_stays_and_a_lost_one_gives_nothing_twice() -> None:
    manager = AddressManager(Leases(), routes=tuple, in_use=lambda *_: False)
    prefix, gateway = ip_network("10.7.0.0/29"), ip_address("10.7.0.1")
    taken = [ip_address("10.7.0.2"), ip_address("10.7.0.4")]
    manager.restore_pool(prefix, None, gateway, taken)
    given = {str(manager.request_address(f"{Space.LOCAL}/{prefix}").interface.ip) for _ in range(3)}
    assert given == {"10.7.0.3", "10.7.0.5", "10.7.0.6"}
    before = manager.state
    manager.restore_pool(prefix, None, gateway, [])
    assert manager.state == before


def test_an_address_of_a_lost_pool_waits_for_its_leases() -> None:
    """Else it might be given twice."""
    waited: list[None] = []
    prefix, gateway = ip_network("10.7.0.0/29"), ip_address("10.7.0.1")

    def recover() -> None:
        waited.append(None)
        manager.restore_pool(prefix, None, gateway, [ip_address("10.7.0.2")])

    manager = AddressManager(Leases(), tuple, lambda *_: False, await_recovery=recover)
    for address in ("10.7.0.3", "10.7.0.4"):
        assert str(manager.request_address(f"{Space.LOCAL}/{prefix}").interface.ip) == address
    assert len(waited) == 1


def test_nothing_is_said_to_the_others_while_containers_are_missing() -> None:
    """They would take our silence about a container for its end."""
    network, options, endpoints = CASES["alone, its VNI chosen by us"]
    remains = read_remains(desired(lost(network, *endpoints), network.id, UNDERLAY), ())
    wish = Wish(MemoryDisk(State(Host(NodeId("same"), VTEP))))
    store = MemoryStore()
    engine = Engine(listed(network, options), containers=containers(*endpoints))
    seeker = recovery(wish, engine, {network.id: remains})
    before = Peering(wish, MemoryControlPlane(NodeId("same"), store))
    before.start()
    wish.change(
        lambda state: recovered(state, read_network(listed(network, options), {}), remains, 4789, 0.0)
    )
    assert before.wait_published(10)
    before.stop(leave=False)
    said = store.dump()
    assert any(ONE in value for value in said.values())

    wish = Wish(MemoryDisk(State(Host(NodeId("same"), VTEP))))
    seeker = recovery(wish, engine, {network.id: remains})
    peering = Peering(
        wish, MemoryControlPlane(NodeId("same"), store), is_incomplete=seeker.is_missing_containers
    )
    peering.start()
    try:
        wish.change(lambda state: replace(state, host=replace(state.host, swarm_port=4790)))
        peering.wait_published(0.3)
        assert any(ONE in value for value in store.dump().values())
        seeker._recover()
        seeker.stop()
        peering.publish()
        assert peering.wait_published(10)
        assert store.dump() == said
    finally:
        peering.stop(leave=False)


@pytest.mark.parametrize("in_swarm", [True, False])
def test_networks_of_a_swarm_that_was_left_are_not_ours(in_swarm: bool) -> None:
    """The engine may list them for a moment longer."""
    network, options, _ = CASES["in a Swarm, several subnets"]
    wish = Wish(MemoryDisk(State(Host(NodeId("x"), VTEP))))
    Recovery(
        wish,
        Engine(listed(network, options)),  # type: ignore[arg-type]
        dict,
        lambda: "pyoverlay:latest",
        lambda pool: None,
        over=lambda: None,
        in_swarm=in_swarm,
    )._recover()
    assert bool(wish.state.allocations) is in_swarm
