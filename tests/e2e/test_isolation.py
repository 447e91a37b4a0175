"""Who may reach whom: egress, published ports, internal and separate networks, broadcast."""

from __future__ import annotations

from tests.e2e.containers import Playground

SERVER = ["httpd", "-f", "-p", "80", "-h", "/etc"]

LISTEN = """
import socket, sys
group, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", port))
if group != "-":
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                 socket.inet_aton(group) + socket.inet_aton(sys.argv[4]))
print("ready", flush=True)
s.settimeout(seconds)
try:
    print(s.recvfrom(100)[0].decode(), flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""

SEND = """
import socket, sys
target, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 4)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
s.bind((source, 0))
s.sendto(b"hello", (target, port))
"""


def test_egress_and_a_published_port_through_docker_gwbridge(ground: Playground) -> None:
    network = ground.network()
    h1, h2, _ = ground.lab.hosts
    server = ground.run(h2, network, "-p", "8081:80", command=SERVER)
    assert server.pings(ground.lab.outside), "no way out"
    got = h1.run(["busybox", "wget", "-q", "-O", "-", f"http://{h2.address}:8081/passwd"]).stdout
    assert "root" in got


def test_a_service_publishes_in_host_mode(ground: Playground) -> None:
    network = ground.network()
    service = ground.service(
        network,
        1,
        "--endpoint-mode",
        "dnsrr",
        "--publish",
        "mode=host,target=80,published=8082",
        command=SERVER,
    )
    (task,) = ground.wait_tasks(service, 1)
    caller = next(host for host in ground.lab.hosts if host is not task.host)
    got = caller.run(["busybox", "wget", "-q", "-O", "-", f"http://{task.host.address}:8082/passwd"]).stdout
    assert "root" in got


def test_an_internal_network_has_no_way_out(ground: Playground) -> None:
    network = ground.network("--internal")
    one, two, _ = ground.everywhere(network)
    assert one.pings(two.address(network))
    assert not one.pings(ground.lab.outside, wait=1)
    assert not one.pings(ground.lab.hosts[1].address, wait=1)


def test_different_networks_do_not_meet(ground: Playground) -> None:
    mine, other = ground.network(), ground.network()
    h1, h2, _ = ground.lab.hosts
    insider = ground.run(h1, mine)
    for host in (h1, h2):
        outsider = ground.run(host, other)
        assert not insider.pings(outsider.address(other), wait=1)
        assert not outsider.pings(insider.address(mine), wait=1)


def test_broadcast_and_multicast_reach_this_networks_containers_and_nobody_else(ground: Playground) -> None:
    network, other = ground.network(subnet="10.204.1.0/24"), ground.network()
    sender, *receivers = ground.everywhere(network)
    local = ground.run(ground.lab.hosts[0], network)
    strangers = ground.everywhere(other)
    inside = [*receivers, local]
    for group, target, port in (("-", "10.204.1.255", "5000"), ("239.1.2.3", "239.1.2.3", "5001")):
        listeners = [c.popen(LISTEN, group, port, "3", c.address(network)) for c in inside]
        outside = [c.popen(LISTEN, group, port, "1.5", c.address(other)) for c in strangers]
        for process in (*listeners, *outside):
            assert process.stdout.readline() == "ready\n"
        sender.python(SEND, target, port, sender.address(network))
        assert [p.communicate()[0] for p in listeners] == ["hello\n"] * len(inside), target
        assert [p.communicate()[0] for p in outside] == ["nothing\n"] * len(strangers), target


def test_broadcast_goes_only_to_hosts_that_have_the_network(ground: Playground) -> None:
    network = ground.network(subnet="10.204.2.0/24")
    h1, h2, h3 = ground.lab.hosts
    sender, _ = ground.run(h1, network), ground.run(h2, network)
    with (
        ground.lab.capture(h3, "udp port 4789") as elsewhere,
        ground.lab.capture(h2, "udp port 4789") as there,
    ):
        for _ in range(3):
            sender.python(SEND, "10.204.2.255", "5002", sender.address(network))
    ours = [p for p in elsewhere.packets() if b"hello" in p.data]
    assert ours == []
    assert len([p for p in there.packets() if b"hello" in p.data]) == 3
