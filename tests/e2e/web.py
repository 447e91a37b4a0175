"""A service with a virtual address, clients that ask it, and what becomes of their requests."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.e2e.containers import Container, Playground, eventually
from tests.lab import Host

RATE = 200
"""Requests a second of a client under load."""

WHO = r"printf '#!/bin/sh\necho; echo $(hostname -i) $REMOTE_ADDR\n' >/www/cgi-bin/who"
PORTS = range(80, 88)
"""A task's, each with a server of its own: busybox's queues nine requests and forks for each, and when a
container starts anywhere on the machine it stands still for 0.1 s."""
WEB = [
    "sh",
    "-c",
    f"mkdir -p /www/cgi-bin; {WHO}; chmod +x /www/cgi-bin/who; hostname -i >/www/me; "
    f"for port in {' '.join(map(str, PORTS[1:]))}; do httpd -p 0.0.0.0:$port -h /www; done; "
    f"exec httpd -f -p 0.0.0.0:{PORTS[0]} -h /www",
]
"""Says its own address, and by /cgi-bin/who the client's too."""

_TCP = """
import collections, socket, sys
seen = collections.Counter()
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 80), 5) as connection:
        connection.sendall(b"GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    task, client = answer.decode().split()[-2:]
    seen[task + " " + client.strip("[]").rpartition(":")[2]] += 1  # [::ffff:10.0.0.2] where there is IPv6
import json; print(json.dumps(seen))
"""

_LOAD = """
import json, random, socket, sys, threading, time
vip, rate, ports, hands = sys.argv[1], int(sys.argv[2]), list(map(int, sys.argv[3:])), 40
asked, over, start = [], threading.Event(), time.monotonic()
def ask():
    try:
        with socket.create_connection((vip, random.choice(ports)), 1) as connection:
            connection.sendall(b"GET /me HTTP/1.0\\r\\n\\r\\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
            return answer.decode().split()[-1]
    except (OSError, IndexError) as error:
        return repr(error)
def work(hand):
    due = start + hand / rate
    while not over.wait(max(0.0, due - time.monotonic())):
        began = time.monotonic()
        who = ask()
        asked.append((began, time.monotonic(), who))
        due = max(due + hands / rate, began)  # who had to wait does not make up for it in a burst
threads = [threading.Thread(target=work, args=[hand]) for hand in range(hands)]
for thread in threads:
    thread.start()
sys.stdin.readline()
over.set()
for thread in threads:
    thread.join()
print(json.dumps(sorted(asked)))
"""
"""Asks at a steady rate, whatever becomes of earlier requests, until its input ends."""


def tcp(client: Container, vip: str, count: int) -> Counter[str]:
    """How many of *count* connections each task has served; with the client's address as the task saw it."""
    return Counter(json.loads(client.python(_TCP, vip, str(count))))


@dataclass
class Load:
    """What a client has seen: when it asked, when it was answered, and by whom or why not."""

    asked: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[float, float, str]]:
        return [one for one in self.asked if "Error" in one[2]]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.asked) / (self.asked[-1][0] - self.asked[0][0])

    def of(self, address: str) -> list[float]:
        """When *address* answered."""
        return [began for began, _, who in self.asked if who == address]

    def __str__(self) -> str:
        slowest = max((end - began, began - self.asked[0][0]) for began, end, _ in self.asked)
        told = f"{len(self.asked)} requests, {self.rate:.0f} a second, {len(self.failures)} failed"
        told += ", the slowest took {:.2f} s, begun after {:.1f} s".format(*slowest)
        if not self.failures:
            return told
        began = self.asked[0][0]
        first, last = (self.failures[n][0] - began for n in (0, -1))
        kinds = dict(Counter(who for _, _, who in self.failures))
        return f"{told}, begun from {first:.1f} s to {last:.1f} s: {kinds}"


@contextmanager
def load(client: Container, vip: str) -> Iterator[Load]:
    """Have *client* ask all the time; what it saw is there after the end."""
    found = Load()
    process = client.popen(_LOAD, vip, str(RATE), *map(str, PORTS))
    try:
        time.sleep(0.3)
        yield found
        time.sleep(0.3)
    finally:
        found.asked = json.loads(process.communicate("\n", timeout=30)[0])


def vip_of(manager: Host, service: str, network: str) -> str:
    inspected: dict[str, Any] = json.loads(manager.docker("service", "inspect", service))[0]
    identity = manager.docker("network", "inspect", "-f", "{{.Id}}", network)
    (found,) = [v["Addr"] for v in inspected["Endpoint"]["VirtualIPs"] if v["NetworkID"] == identity]
    return str(found).partition("/")[0]


def backends(client: Container, vip: str) -> set[str]:
    """Where *vip* leads to, by the client's own table."""
    table = client.host.run(["nsenter", "-t", client.pid, "-n", "nft", "list", "ruleset"]).stdout
    chain = table.partition(f"chain s{vip} {{")[2].partition("}\n")[0]
    return {word.strip(",") for word in chain.partition("map {")[2].split() if "." in word}


def known(client: Container, vip: str, wanted: set[str]) -> bool:
    """Whether *vip* has a table that leads to exactly these."""
    return backends(client, vip) == wanted


@dataclass
class Web:
    """A service, its virtual address, and a client on every host that knows it."""

    ground: Playground
    network: str
    service: str
    clients: list[Container]
    vip: str = field(init=False)

    def __post_init__(self) -> None:
        self.vip = vip_of(self.ground.manager, self.service, self.network)

    def scale(self, replicas: int) -> set[str]:
        """Have so many tasks; return their addresses once every client knows them."""
        self.ground.manager.docker("service", "scale", "-d", f"{self.service}={replicas}")
        return self.wait(replicas)

    def wait(self, replicas: int) -> set[str]:
        """Return the tasks' addresses once every client knows them, at most ten seconds after they changed.

        After a fault the Swarm may still replace tasks when there are as many as there should be.
        """
        addresses = self._running(replicas)
        while not eventually(partial(self._know, addresses), 10):
            before, addresses = addresses, self._running(replicas)
            assert addresses != before, f"not all clients of {self.vip} know {sorted(addresses)}"
        return addresses

    def _know(self, addresses: set[str]) -> bool:
        return all(known(client, self.vip, addresses) for client in self.clients)

    def _running(self, replicas: int) -> set[str]:
        tasks = self.ground.wait_tasks(self.service, replicas)
        return {task.address(self.network) for task in tasks}


def web(ground: Playground, replicas: int, *options: str) -> Web:
    network = ground.network()
    service = ground.service(network, replicas, *options, command=WEB)
    clients = ground.everywhere(network)
    ground.wait_tasks(service, replicas)
    made = Web(ground, network, service, clients)
    made.wait(replicas)
    return made
