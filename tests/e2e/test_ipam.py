"""Our IPAM driver in a Swarm: the leader allocates, the nodes repeat."""

from __future__ import annotations

from tests.e2e.containers import DRIVER, Playground, eventually, unique


def test_containers_and_a_service_on_a_network_of_our_ipam(ground: Playground) -> None:
    network = unique("net")
    ground.manager.docker("network", "create", "-d", DRIVER, "--ipam-driver", DRIVER, "--attachable", network)
    ground.networks.append(network)
    service = ground.service(network, 6, "--endpoint-mode", "dnsrr")
    tasks = ground.wait_tasks(service, 6)
    containers = ground.everywhere(network)
    addresses = [c.address(network) for c in (*tasks, *containers)]
    assert len(set(addresses)) == 9
    for container in containers:
        for address in addresses:
            assert container.pings(address)
    ground.manager.docker("service", "scale", "-d", f"{service}=2")
    ground.wait_tasks(service, 2)
    ground.manager.docker("service", "scale", "-d", f"{service}=5")
    tasks = ground.wait_tasks(service, 5)
    assert eventually(lambda: containers[0].resolves(service) == {t.address(network) for t in tasks})


def test_two_networks_get_different_pools(ground: Playground) -> None:
    prefixes = set()
    for _ in range(2):
        network = unique("net")
        ground.manager.docker(
            "network", "create", "-d", DRIVER, "--ipam-driver", DRIVER, "--attachable", network
        )
        ground.networks.append(network)
        container = ground.run(ground.lab.hosts[1], network)
        prefixes.add(container.address(network).rsplit(".", 1)[0])
    assert len(prefixes) == 2


def test_ipv6_in_a_swarm_is_refused_in_the_leaders_log(ground: Playground) -> None:
    """Swarm's allocator asks nobody's driver twice; the engine's log is where it says why."""
    network = unique("net")
    options = ["--ipam-driver", DRIVER, "--attachable", "--ipv6", "--subnet", "fd00:66::/64"]
    ground.manager.docker("network", "create", "-d", DRIVER, *options, network)
    ground.networks.append(network)
    assert eventually(lambda: "fd00:66::/64" in _refusals(ground.manager.engine_log()), 10)


def _refusals(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if "IpamDriver.RequestPool" in line and "IPv6" in line)
