"""Nodes that come and go, and what is left when everything is removed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import put
from tests.e2e.containers import DRIVER, NOTHING, Playground, eventually, ours, removed
from tests.lab import Host, Lab


def rows(host: Host, network_id: str) -> set[str]:
    """The VTEPs that a host forwards a network's frames to."""
    shown = host.run(
        ["ip", "netns", "exec", f"pyoverlay-{network_id[:12]}", "bridge", "-j", "fdb"], check=False
    )
    return {row["dst"] for row in json.loads(shown.stdout or "[]") if "dst" in row}


def test_a_node_joins_later_and_leaves_again(ground: Playground, built: Path) -> None:
    """The others are right within the second, both times."""
    lab = ground.lab
    network = ground.network()
    identity = ground.manager.docker("network", "inspect", "-f", "{{.Id}}", network)
    old = ground.everywhere(network)
    late = lab.add_host("28.5")
    try:
        lab.join(late)
        put(late, built)
        lab.wait_ready()
        new = eventually(lambda: ground.run(late, network), 30)
        for container in old:
            assert container.pings(new.address(network), wait=1)
            assert new.pings(container.address(network), wait=1)
        assert late.address in rows(old[0].host, identity)

        new.remove()
        assert eventually(lambda: late.address not in rows(old[0].host, identity), timeout=1)
        ground.run(late, network)
        assert eventually(lambda: late.address in rows(old[0].host, identity), timeout=1)
        late.docker("swarm", "leave")
        left = time.monotonic()
        assert eventually(lambda: late.address not in rows(old[1].host, identity), timeout=1)
        print(f"rows gone {time.monotonic() - left:.2f} s after the node left")
        assert eventually(lambda: ours(late) == NOTHING, 20), ours(late)
    finally:
        ground.containers = [c for c in ground.containers if c.host is not late]
        lab.remove_host(late)
        ground.manager.docker("node", "rm", "-f", late.name, check=False)


@pytest.mark.parametrize("engine", ["28.5", "20.10"])
def test_a_new_swarms_network_is_never_of_one_host(engine: str, built: Path) -> None:
    """While plugin and engine find out about the Swarm, a network is refused, not made for one host."""
    with Lab(engines=[engine]) as lab:
        (host,) = lab.hosts
        put(host, built)
        host.docker("swarm", "init", "--advertise-addr", host.address)
        assert eventually(lambda: host.docker("network", "create", "-d", DRIVER, "net"), 30, every=0)
        assert host.docker("network", "inspect", "-f", "{{.Scope}}", "net") == "swarm"


def test_nothing_is_left_when_everything_is_removed(ground: Playground) -> None:
    network = ground.network()
    service = ground.service(network, 6, "--endpoint-mode", "dnsrr")
    ground.wait_tasks(service, 6)
    containers = ground.everywhere(network)
    assert all(ours(host)["namespaces"] for host in ground.lab.hosts)
    for container in containers:
        container.remove()
    ground.manager.docker("service", "rm", service)
    assert eventually(lambda: removed(ground.manager, network), 30)
    for host in ground.lab.hosts:
        assert eventually(lambda h=host: ours(h) == NOTHING, 20), ours(host)  # type: ignore[misc]
        assert eventually(lambda h=host: state(h) == {"networks": [], "endpoints": []}, 20), state(host)  # type: ignore[misc]
    assert eventually(lambda: state(ground.manager, "allocations") == {"allocations": {}}, 20)
    assert eventually(lambda: store_keys(ground.lab, "endpoints/") == 0, 20)


def state(host: Host, *names: str) -> dict[str, object]:
    """What the plugin has on disk."""
    identity = host.docker("plugin", "inspect", "-f", "{{.Id}}", "pyoverlay:latest")
    file = host.path(f"/var/lib/docker/plugins/{identity}/propagated-mount/state.json")
    document = json.loads(file.read_text())["state"]
    return {name: document[name] for name in names or ("networks", "endpoints")}


COUNT_KEYS = """
import base64, json, socket, ssl, sys, tempfile
folder, address, prefix = sys.argv[1], sys.argv[2], sys.argv[3].encode()
context = ssl.create_default_context(cafile=folder + "/swarm-root-ca.crt")
with tempfile.NamedTemporaryFile("w") as key:
    # The PEM header lines are Swarm's own; OpenSSL does not read past them.
    lines = open(folder + "/swarm-node.key").read().splitlines()
    key.write("\\n".join(line for line in lines if ":" not in line))
    key.flush()
    context.load_cert_chain(folder + "/swarm-node.crt", key.name)
end = prefix[:-1] + bytes([prefix[-1] + 1])
body = json.dumps({"key": base64.b64encode(prefix).decode(), "range_end": base64.b64encode(end).decode(),
                   "count_only": True})
with context.wrap_socket(socket.create_connection((address, 2389)), server_hostname="swarm-manager") as tls:
    head = "POST /v3/kv/range HTTP/1.0\\r\\nContent-Length: " + str(len(body)) + "\\r\\n\\r\\n"
    tls.sendall((head + body).encode())
    print(int(json.loads(tls.makefile("rb").read().split(b"\\r\\n\\r\\n", 1)[1]).get("count", 0)))
"""


def store_keys(lab: Lab, under: str) -> int:
    """How many keys the store on the leader has, asked with the leader's own certificate."""
    leader = lab.hosts[0]
    folder = "/var/lib/docker/swarm/certificates"
    argv = [sys.executable, "-c", COUNT_KEYS, folder, leader.address, f"/pyoverlay/v1/{under}"]
    return int(leader.run(argv).stdout)
