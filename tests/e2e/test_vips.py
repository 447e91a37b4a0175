"""Services by their virtual address: `docker service create --network ours`, and its name answers."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from tests.e2e.containers import DRIVER, IMAGE, Container, Playground, eventually
from tests.e2e.test_services import drained
from tests.e2e.web import RATE, WEB, known, load, tcp, vip_of, web
from tests.lab import Host

_UDP = """
import collections, socket, sys
seen = collections.Counter()
for number in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(5)
        datagrams.bind(("", 20000 + number))  # one drawn at random may be drawn again, and goes where it went
        datagrams.connect((sys.argv[1], 81))
        datagrams.send(b"who\\n")
        seen[datagrams.recv(100).decode().strip()] += 1
import json; print(json.dumps(seen))
"""

_UDP_SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 81))
print("ready", flush=True)
while True:
    _, client = server.recvfrom(100)
    server.sendto(sys.argv[1].encode(), client)
"""


def udp(client: Container, vip: str, count: int) -> Counter[str]:
    """The same by datagrams, each from another port."""
    return Counter(json.loads(client.python(_UDP, vip, str(count))))


def test_from_everywhere_every_task_of_every_service(ground: Playground) -> None:
    """Two networks with several services each; beside them one in dnsrr mode, and published ports."""
    networks = [ground.network(), ground.network()]
    services = [(ground.service(n, r, command=WEB), n, r) for n in networks for r in (2, 3)]
    published = ["--publish", "published=8080,target=80"]
    services.append((ground.service(networks[0], 2, *published, command=WEB), networks[0], 2))
    dnsrr = ground.service(networks[0], 2, "--endpoint-mode", "dnsrr")
    clients = {network: ground.everywhere(network) for network in networks}
    plain = {task.address(networks[0]) for task in ground.wait_tasks(dnsrr, 2)}
    for service, network, replicas in services:
        tasks = ground.wait_tasks(service, replicas)
        addresses = {task.address(network) for task in tasks}
        vip = vip_of(ground.manager, service, network)
        servers = [task.popen(_UDP_SERVER, task.address(network)) for task in tasks]
        assert all(server.stdout.readline() for server in servers)
        for client in (*clients[network], tasks[0]):
            me = client.address(network)
            assert eventually(lambda c=client, v=vip, a=addresses: known(c, v, a), 10)  # type: ignore[misc]
            assert tcp(client, vip, 6 * replicas) == {f"{address} {me}": 6 for address in addresses}
            assert udp(client, vip, 2 * replicas) == dict.fromkeys(addresses, 2)
            assert client.pings(vip)
        for server in servers:
            server.kill()
            server.communicate()
    client = clients[networks[0]][0]
    assert eventually(
        lambda: client.resolves(services[0][0]) == {vip_of(ground.manager, *services[0][:2])}, 40
    )
    assert client.exec("wget", "-qO-", f"http://{services[0][0]}/cgi-bin/who")
    assert eventually(lambda: client.resolves(dnsrr) == plain, 40)
    assert all(client.pings(address) for address in plain)


def test_the_first_thing_that_a_container_does(ground: Playground) -> None:
    """Its table is there before its program starts; before Engine 28 the namespace comes only after Join."""
    it = web(ground, 2)
    url, tasks = f"http://{it.vip}/cgi-bin/who", it.wait(2)
    for host in ground.lab.hosts:
        for _ in range(3):
            argv = ["run", "--rm", "--network", it.network, IMAGE, "timeout", "2", "wget", "-qO-", url]
            assert host.docker(*argv, timeout=90).split()[0] in tasks, host


def test_a_service_through_its_life_under_requests(ground: Playground) -> None:
    """Scaled, updated with the new task first: no request fails. A task is killed: those under way do."""
    healthy = ["--health-cmd", "wget -qO- 127.0.0.1/me", "--health-interval", "500ms"]
    order = ["--update-order", "start-first", "--update-parallelism", "1", "--restart-delay", "1s"]
    it = web(ground, 2, *healthy, *order)
    with load(it.clients[1], it.vip) as seen:
        before = it.scale(4)
    assert not seen.failures
    assert all(seen.of(address) for address in before)

    with load(it.clients[1], it.vip) as seen:
        before = it.scale(3)
        ground.manager.docker("service", "update", "-d", "--force", it.service)
        assert eventually(lambda: updated(ground.manager, it.service), 60)
        after = it.wait(3)
    assert not before & after
    print(f"start-first: {seen}")
    assert seen.rate > 0.9 * RATE
    assert not seen.failures

    with load(it.clients[1], it.vip) as seen, drained(ground, "h3"):
        assert eventually(lambda: {t.host.name for t in ground.tasks(it.service)} == {"h1", "h2"}, 60)
        it.wait(3)
    print(f"drained: {seen}")
    assert not seen.failures

    victim = it.ground.tasks(it.service)[0]
    address = victim.address(it.network)
    with load(it.clients[1], it.vip) as seen:
        killed = time.monotonic()
        victim.host.docker("kill", victim.name)
        time.sleep(2)
    failed = [(began - killed, answered - killed, who) for began, answered, who in seen.failures]
    last = max(seen.of(address)) - killed
    print(f"killed: {seen}: {failed}, last answer of the dead {last:.3f} s")
    assert all(began < 1 for began, _, _ in failed)
    it.wait(3)

    assert it.scale(0) == set()
    with pytest.raises(Exception, match="refused"):
        tcp(it.clients[0], it.vip, 1)
    assert len(it.scale(2)) == 2
    assert len(tcp(it.clients[2], it.vip, 10)) == 2


def test_a_plugin_that_ends_takes_nothing_along(ground: Playground) -> None:
    """Killed, and disabled and enabled, under requests; on the Swarm's leader, with its store, too."""
    it = web(ground, 3)
    for end in (disable_and_enable, kill):
        for host, client in zip(ground.lab.hosts[:2], it.clients, strict=False):
            with load(client, it.vip) as seen:
                end(host)
                time.sleep(1)
            assert len(seen.asked) > 100
            assert not seen.failures
    assert len(tcp(it.clients[0], it.vip, 3)) == 3
    assert eventually(lambda: all(ground.offered(host) for host in ground.lab.hosts), 30)
    it.scale(4)
    assert len(tcp(it.clients[1], it.vip, 4)) == 4


def disable_and_enable(host: Host) -> None:
    host.docker("plugin", "disable", "-f", DRIVER)
    time.sleep(0.5)
    host.docker("plugin", "enable", DRIVER)


def kill(host: Host) -> None:
    """All of its processes at once; the engine starts it again."""
    plugin = "plugin[.]cli serve"
    host.run(["pkill", "-KILL", "-f", plugin])
    assert eventually(lambda: host.run(["pgrep", "-f", plugin], check=False).stdout)


def updated(manager: Host, service: str) -> bool:
    return manager.docker("service", "inspect", "-f", "{{.UpdateStatus.State}}", service) == "completed"
