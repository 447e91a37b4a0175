"""Attachable containers on three hosts reach each other, however they were started."""

from __future__ import annotations

from itertools import product

from tests.e2e.containers import Container, Playground, eventually


def test_by_address_both_ways(ground: Playground) -> None:
    network = ground.network()
    for one, other in product(ground.everywhere(network), repeat=2):
        assert one.pings(other.address(network)), f"{one} -> {other} by address"


def test_by_name_both_ways(ground: Playground) -> None:
    """Names are the engines' own matter: in a new Swarm their gossip may lose one network's for minutes."""
    assert any(reach_by_name(ground.everywhere(ground.network())) for _ in range(3))


def reach_by_name(containers: list[Container]) -> bool:
    return all(eventually(lambda a=a, b=b: a.pings(b.name), 60) for a, b in product(containers, repeat=2))  # type: ignore[misc]


def test_reachable_as_soon_as_docker_run_returns(ground: Playground) -> None:
    """The other hosts know of a container before it starts: no ping is lost, not even the first."""
    network = ground.network()
    first = ground.run(ground.lab.hosts[0], network)
    for host in ground.lab.hosts[1:] * 3:
        new = ground.run(host, network)
        assert first.pings(new.address(network), wait=1), f"{new} was not reachable at once"


def test_a_given_address_mac_and_alias(ground: Playground) -> None:
    network = ground.network(subnet="10.202.1.0/24")
    h1, h2, _ = ground.lab.hosts
    chosen = ground.run(
        h2, network, "--ip", "10.202.1.77", "--mac-address", "02:42:aa:bb:cc:dd", "--network-alias", "db"
    )
    client = ground.run(h1, network)
    assert chosen.address(network) == "10.202.1.77"
    assert chosen.facts(network)["MacAddress"] == "02:42:aa:bb:cc:dd"
    assert "02:42:aa:bb:cc:dd" in chosen.exec("cat", "/sys/class/net/eth0/address")
    assert client.pings("10.202.1.77")
    assert eventually(lambda: client.resolves("db") == {"10.202.1.77"})
    assert client.pings("db")
    assert "02:42:aa:bb:cc:dd" in client.exec("ip", "neigh")


def test_connect_and_disconnect_a_running_container(ground: Playground) -> None:
    network, other = ground.network(), ground.network()
    h1, h2, _ = ground.lab.hosts
    client = ground.run(h1, network)
    mover = ground.run(h2, other)
    before = mover.exec("ls", "/sys/class/net")
    for _ in range(2):
        h2.docker("network", "connect", network, mover.name)
        address = mover.address(network)
        assert client.pings(address)
        h2.docker("network", "disconnect", network, mover.name)
        assert not client.pings(address, wait=1)
        assert mover.exec("ls", "/sys/class/net") == before


def test_a_container_on_two_networks(ground: Playground) -> None:
    one, two = ground.network(), ground.network()
    h1, h2, h3 = ground.lab.hosts
    bridge = ground.run(h1, one)
    h1.docker("network", "connect", two, bridge.name)
    on_one, on_two = ground.run(h2, one), ground.run(h3, two)
    assert on_one.pings(bridge.address(one))
    assert on_two.pings(bridge.address(two))
    assert bridge.pings(on_one.address(one))
    assert bridge.pings(on_two.address(two))


def test_a_restarted_container_is_found_again(ground: Playground) -> None:
    network = ground.network()
    h1, h2, _ = ground.lab.hosts
    client, server = ground.run(h1, network), ground.run(h2, network)
    h2.docker("restart", "-t", "0", server.name)
    assert client.pings(server.address(network))
    assert eventually(lambda: client.pings(server.name))


def test_several_subnets_are_routed(ground: Playground) -> None:
    network = ground.network("--subnet", "10.203.1.0/24", "--subnet", "10.203.2.0/24")
    h1, h2, h3 = ground.lab.hosts
    first = ground.run(h1, network, "--ip", "10.203.1.5")
    second = ground.run(h2, network, "--ip", "10.203.2.5")
    third = ground.run(h3, network, "--ip", "10.203.1.6")
    assert first.pings("10.203.2.5")
    assert second.pings("10.203.1.5")
    assert first.pings("10.203.1.6")
    assert third.pings("10.203.2.5")
