"""What is on the wire: VXLAN as RFC 7348 has it, and never a fragment."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from tests.e2e.containers import Container, Playground, eventually
from tests.lab import Host, Lab

MEGABYTES = 40

RECEIVE = """
import hashlib, socket, sys
s = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
c, _ = s.accept()
digest = hashlib.sha256()
while data := c.recv(1 << 20):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""

SEND = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7000), timeout=20)
block = bytes(range(256)) * 4096
for _ in range(int(sys.argv[2])):
    c.sendall(block)
c.shutdown(socket.SHUT_WR)
c.recv(1)
"""

EXPECTED = hashlib.sha256(bytes(range(256)) * 4096 * MEGABYTES).hexdigest()


def transfer(sender: Container, receiver: Container, network: str) -> None:
    address = receiver.address(network)
    listening = receiver.popen(RECEIVE, address)
    assert listening.stdout.readline() == "ready\n"
    sender.python(SEND, address, str(MEGABYTES), timeout=60)
    assert listening.communicate(timeout=30)[0] == f"{EXPECTED}\n"


def set_underlay_mtu(lab: Lab, mtu: int) -> None:
    lab.hub.ip(f"link set br0 mtu {mtu}", *(f"link set {host.name} mtu {mtu}" for host in lab.hosts))
    for host in lab.hosts:
        host.spaces.ip(f"link set {host.interface} mtu {mtu}")
    lab.hub.ip(f"link set br0 mtu {mtu}")


def agreed(host: Host) -> int:
    """The MTU that a host has agreed on with the others, as its log says; it begins with 1500."""
    return int(["1500", *re.findall(r"the underlay carries (\d+) bytes to all hosts", host.engine_log())][-1])


@pytest.mark.parametrize("mtu", [1400, 9000, 1500])
def test_large_transfers_both_ways_without_a_fragment(ground: Playground, mtu: int) -> None:
    lab = ground.lab
    try:
        set_underlay_mtu(lab, mtu)
        assert eventually(lambda: all(agreed(host) == mtu for host in lab.hosts))
        network = ground.network()
        h1, h2, _ = lab.hosts
        one, two = ground.run(h1, network), ground.run(h2, network)
        assert mtu_of(one) == str(mtu - 50)
        fragments = "ip[6:2] & 0x3fff != 0"
        with lab.capture(h1, f"{fragments} or (udp port 4789 and greater {mtu + 15})") as wire:
            transfer(one, two, network)
            transfer(two, one, network)
            full = str(mtu - 50 - 28)
            assert "1 packets received" in one.exec("ping", "-c", "1", "-s", full, two.address(network))
        assert [p for p in wire.packets() if p.fragment] == []
    finally:
        ground.clear()
        set_underlay_mtu(lab, 1500)


def test_a_smaller_card_on_one_host_lowers_the_running_containers_of_all(ground: Playground) -> None:
    lab = ground.lab
    h1, h2, _ = lab.hosts
    assert eventually(lambda: all(agreed(host) == 1500 for host in lab.hosts))
    network = ground.network()
    one, two = ground.run(h1, network), ground.run(h2, network)
    try:
        h2.spaces.ip(f"link set {h2.interface} mtu 1400")
        lab.hub.ip(f"link set {h2.name} mtu 1400")
        assert eventually(lambda: [mtu_of(one), mtu_of(two)] == ["1350", "1350"])
        assert "1 packets received" in one.exec("ping", "-c", "1", "-s", "1422", two.address(network))
        assert mtu_of(ground.run(h1, network)) == "1350"
    finally:
        ground.clear()
        set_underlay_mtu(lab, 1500)
        assert eventually(lambda: all(agreed(host) == 1500 for host in lab.hosts))


def mtu_of(container: Container) -> str:
    return container.exec("cat", "/sys/class/net/eth0/mtu")


def test_vxlan_on_the_wire_is_rfc_7348(ground: Playground) -> None:
    network = ground.network("-o", "vni=70123", "-o", "vxlan_port=4791")
    h1, h2, _ = ground.lab.hosts
    one, two = ground.run(h1, network), ground.run(h2, network)
    with ground.lab.capture(h1, f"host {h2.address} and udp") as wire:
        assert one.pings(two.address(network))
    outer = [p for p in wire.packets() if p.inner is not None and p.inner.version == 4]
    assert len(outer) == 2, "an echo request and its reply"
    for packet in outer:
        assert packet.udp is not None
        source, destination, _ = packet.udp
        assert destination == 4791
        assert 49152 <= source <= 65535
        assert packet.vxlan_header == bytes([8, 0, 0, 0]) + (70123).to_bytes(3) + b"\0"
        assert packet.udp_checksum == 0
    assert {(p.source, p.destination) for p in outer} == {(h1.address, h2.address), (h2.address, h1.address)}
    assert {p.inner.source for p in outer if p.inner} == {one.address(network), two.address(network)}


def test_arp_is_answered_at_home(ground: Playground) -> None:
    network = ground.network()
    h1, h2, _ = ground.lab.hosts
    one, two = ground.run(h1, network), ground.run(h2, network)
    with ground.lab.capture(h1, "udp port 4789") as wire:
        one.exec("ip", "neigh", "flush", "dev", "eth0")
        assert one.pings(two.address(network))
        assert not one.pings(two.address(network).rsplit(".", 1)[0] + ".250", wait=1)
    inner = [p.inner for p in wire.packets() if p.inner is not None]
    assert len(inner) >= 2
    assert [p for p in inner if p.ethertype == 0x0806] == []


def test_options_for_the_mtu(ground: Playground) -> None:
    h1 = ground.lab.hosts[0]
    given = ground.run(h1, ground.network("-o", "mtu=1300"))
    assert given.exec("cat", "/sys/class/net/eth0/mtu") == "1300"
    underlay = ground.run(h1, ground.network("-o", "com.docker.network.driver.mtu=1420"))
    assert underlay.exec("cat", "/sys/class/net/eth0/mtu") == "1370"


def test_beside_the_built_in_overlay_on_the_same_port(ground: Playground) -> None:
    built_in, network = ground.network(driver="overlay"), ground.network()
    theirs, our_own = ground.everywhere(built_in), ground.everywhere(network)
    for container in theirs[1:]:
        assert theirs[0].pings(container.address(built_in), wait=3)
    for container in our_own[1:]:
        assert our_own[0].pings(container.address(network))


def test_the_devices_have_names_and_labels_that_a_person_understands(ground: Playground) -> None:
    network = ground.network("-o", "vni=70456")
    h1 = ground.lab.hosts[0]
    container = ground.run(h1, network)
    identity = h1.docker("network", "inspect", "-f", "{{.Id}}", network)
    namespace = f"pyoverlay-{identity[:12]}"
    assert namespace in h1.run(["ip", "netns"]).stdout
    links = json.loads(h1.run(["ip", "-n", namespace, "-j", "-d", "link"]).stdout)
    labels = {link["ifname"]: link.get("ifalias", "") for link in links}
    assert labels["br70456"].startswith(f"pyoverlay network {identity}")
    assert labels["vx70456"].startswith(f"pyoverlay network {identity}")
    assert any(
        container.address(network) in label for name, label in labels.items() if name.startswith("port")
    )
