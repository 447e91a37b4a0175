"""Virtual addresses while services and containers change networks, and for who sits behind a container."""

from __future__ import annotations

from tests.e2e.containers import Container, Playground, eventually
from tests.e2e.test_vips import updated
from tests.e2e.web import Web, known, load, tcp, vip_of, web

_BEHIND = """
ip netns add behind
ip link add v0 type veth peer name v1 netns behind
ip addr add 172.31.9.1/24 dev v0
ip link set v0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
nft add table ip own
nft 'add chain ip own p { type nat hook postrouting priority 100; }'
nft add rule ip own p ip saddr 172.31.9.0/24 masquerade
ip -n behind addr add 172.31.9.2/24 dev v1
ip -n behind link set v1 up
ip -n behind route add default via 172.31.9.1
"""

_ASK = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def test_who_sits_behind_a_container(ground: Playground) -> None:
    """As the containers of an engine in it, or the clients of a VPN server, do."""
    it = web(ground, 2)
    tasks = it.wait(2)
    for client in it.clients:
        inside = ["nsenter", "-t", client.pid, "-n"]
        client.host.run([*inside, "sh", "-ec", _BEHIND])
        asked = ["ip", "netns", "exec", "behind", "python3", "-S", "-c", _ASK, f"http://{it.vip}/me"]
        seen = {client.host.run([*inside, *asked]).stdout.split()[0] for _ in range(6)}
        assert seen == tasks, client.host
        client.host.run(["ip", "netns", "del", "behind"])


def table(container: Container) -> str:
    return str(container.host.run(["nsenter", "-t", container.pid, "-n", "nft", "list", "ruleset"]).stdout)


def test_a_task_is_disconnected_and_connected_again(ground: Playground) -> None:
    """By hand: nobody is sent to it meanwhile, and the others go on whatever address it gets then.

    The engine, which does not ask the Swarm for it, gives the virtual address of the service itself: refused.
    """
    it = web(ground, 3)
    task = ground.tasks(it.service)[0]
    others = {other.address(it.network) for other in ground.tasks(it.service) if other.name != task.name}
    task.host.docker("network", "disconnect", "-f", it.network, task.name)
    assert eventually(lambda: all(known(client, it.vip, others) for client in it.clients), 10)
    assert eventually(lambda: it.vip not in table(task), 10)
    with load(it.clients[0], it.vip) as seen:
        connect = ["docker", "network", "connect", it.network, task.name]
        refused = task.host.run(connect, check=False).stderr
        assert f"{it.vip} is the virtual address of service {it.service}" in refused, task.host
    assert not seen.failures
    assert all(known(client, it.vip, others) for client in it.clients)
    assert it.vip not in table(task)
    ground.manager.docker("service", "update", "-d", "--force", it.service)
    assert eventually(lambda: updated(ground.manager, it.service), 60)
    assert len(it.wait(3)) == 3


def update_under_load(ground: Playground, it: Web, *change: str) -> None:
    """Change the service while it is asked all the time; no request may fail."""
    with load(it.clients[1], it.vip) as seen:
        ground.manager.docker("service", "update", "-d", *change, it.service)
        assert eventually(lambda: updated(ground.manager, it.service), 60)
        it.wait(2)
    print(f"{change[0]}: {seen}")
    assert not seen.failures


def test_a_service_gets_a_network_and_loses_it_under_requests(ground: Playground) -> None:
    healthy = ["--health-cmd", "wget -qO- 127.0.0.1/me", "--health-interval", "500ms"]
    it = web(ground, 2, *healthy, "--update-order", "start-first", "--restart-delay", "1s")
    more = ground.network()
    others = ground.everywhere(more)
    update_under_load(ground, it, "--network-add", more)
    vip = vip_of(ground.manager, it.service, more)
    both = {task.address(more) for task in ground.wait_tasks(it.service, 2)}
    assert eventually(lambda: all(known(client, vip, both) for client in others), 10)
    assert len(tcp(others[2], vip, 4)) == 2
    update_under_load(ground, it, "--network-rm", more)
    assert eventually(lambda: all(vip not in table(client) for client in others), 10)
