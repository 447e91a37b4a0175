"""What virtual addresses cost: tables of 500 services of 10 tasks in 50 containers, and each packet's way.

    .venv/bin/python -m bench.vips [--quick]

Needs root; everything happens in network namespaces of its own, without engines.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from bench.drift import machines
from bench.figures import OURS, Figures, Measure
from bench.report import table
from bench.scene import apart
from driver.kernel import netns
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.reconcile.sandboxes import SandboxReconciler
from driver.wish.model import Endpoint, Host, Network, Peer, PeerNode, Peers, Phase
from driver.wish.records import ServiceRecord
from driver.wish.state import State
from driver.wish.values import Address, EndpointId, NetworkId, NodeId, mac_of
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.kernel.hosts import Space

NET = NetworkId("net1")
SERVICES, TASKS, CONTAINERS = 500, 10, 50
VIPS, BACKENDS, HERE = (ip_address(text) for text in ("10.1.8.0", "10.64.0.0", "10.63.0.2"))
OTHER = NodeId("b")

DIRECT = "direct"
"""By the task's own address."""

PART = "services"
_ALL = f"{SERVICES} services of {TASKS} tasks in {CONTAINERS} containers"
BUILT = Measure(PART, f"{_ALL}: tables built", "ms")
CHANGE = Measure(PART, f"{_ALL}: one task's change in all", "ms")
END = Measure(PART, f"{_ALL}: a task's end, by its endpoint", "ms")
ADOPTED = Measure(PART, f"{_ALL}: taken over by a new process", "ms")
AUDIT = Measure(PART, f"{_ALL}: an audit of what nobody has changed", "ms")
ROUND_TRIP = Measure(PART, "round trip by virtual address among 500", "µs")
CONNECTION = Measure(PART, "connection made by virtual address among 500", "µs")

Services = dict[Address, ServiceRecord]


def many() -> Services:
    """Draw up 500 services."""
    return {
        VIPS + s: ServiceRecord(
            NET, VIPS + s, f"s{s}", tuple(BACKENDS + s * TASKS + task for task in range(TASKS))
        )
        for s in range(SERVICES)
    }


@contextmanager
def host(services: Services) -> Iterator[Wish]:
    """Make a host with 50 containers, in a network of 5,000 remote tasks."""
    spaces = [netns.create() for _ in range(CONTAINERS)]
    vtep = ip_address("192.0.2.2")
    endpoints = {}
    for number, space in enumerate(spaces):
        address, identity = HERE + number, EndpointId(f"{number:064x}")
        path = f"/proc/{os.getpid()}/fd/{space}"
        interface = ip_interface(f"{address}/8")
        endpoints[identity] = Endpoint(identity, NET, (interface,), mac_of(address), Phase.JOINED, path)
    rows = {b: Peer(mac_of(b), vtep, OTHER) for service in services.values() for b in service.backends}
    peers = Peers({OTHER: PeerNode(vtep)}, {NET: rows}, frozenset({NET}))
    state = State(Host(NodeId("a"), ip_address("192.0.2.1")), {NET: Network(NET, ())}, endpoints, peers=peers)
    wish = Wish(MemoryDisk(state))
    wish.change(lambda _: state)
    yield wish
    for space in spaces:
        os.close(space)


def run(figures: Figures, *, quick: bool) -> None:
    """Measure; the whole form takes half a minute."""
    apart(figures, "bench.vips", *(["--quick"] if quick else []))


def tables(figures: Figures, rounds: int) -> None:
    """Measure how long tables take in all containers of a host."""
    services = many()
    with host(services) as wish:
        balancing = SandboxReconciler(wish, NetlinkSandboxes(), audit_interval=3600)
        balancing.start()
        figures.add(BUILT, OURS, timed(balancing, wish, services) * 1000)
        for number in range(rounds):
            time.sleep(0.2)
            vip = VIPS + number
            services = {**services, vip: replace(services[vip], backends=services[vip].backends[1:])}
            figures.add(CHANGE, OURS, timed(balancing, wish, services) * 1000)
            gone = BACKENDS + 2000 + number
            time.sleep(0.2)
            figures.add(END, OURS, ended(balancing, wish, gone) * 1000)
        balancing.stop()
        again = SandboxReconciler(wish, NetlinkSandboxes(), audit_interval=3600)
        began = time.perf_counter()
        again.start()
        again.wait_tried(1, 60)
        figures.add(ADOPTED, OURS, (time.perf_counter() - began) * 1000)
        time.sleep(0.2)  # its thread is at rest then, and what follows is done by this one
        figures.add(AUDIT, OURS, *(once(again) * 1000 for _ in range(rounds)))
        again.stop()


def timed(balancing: SandboxReconciler, wish: Wish, services: Services) -> float:
    """Return the seconds until all containers have *services*."""
    began = time.perf_counter()
    assert balancing.wait_tried(wish.change(lambda s: replace(s, services={NET: services})), 60)
    return time.perf_counter() - began


def ended(balancing: SandboxReconciler, wish: Wish, gone: Address) -> float:
    """Return the seconds until no container sends to *gone*."""
    rows = {a: peer for a, peer in wish.state.peers.entries[NET].items() if a != gone}
    began = time.perf_counter()
    revision = wish.change(lambda s: replace(s, peers=replace(s.peers, entries={NET: rows})))
    assert balancing.wait_tried(revision, 60)
    return time.perf_counter() - began


def once(balancing: SandboxReconciler) -> float:
    """Return the seconds that a look at everything takes."""
    began = time.perf_counter()
    for sandbox, progress in balancing._progress.items():
        balancing._reconcile(sandbox, progress, whole=True)
    return time.perf_counter() - began


def packets(figures: Figures, rounds: int) -> None:
    """Measure what an address costs beside the task's own, between two hosts, among 500 services."""
    with ExitStack() as stack:
        one, two = machines(stack)
        for machine in (one, two):
            machine.create(NET, "10.1.0.0/16", 1000)
        task, client = two.attach(NET, "10.1.0.11", length=16), one.attach(NET, "10.1.0.2", length=16)
        stack.enter_context(echo(task))
        direct, vip = ip_address("10.1.0.11"), VIPS
        services = many() | {vip: ServiceRecord(NET, vip, "web", (direct,))}
        one.wish.change(lambda s: replace(s, offer={NET: frozenset(services.values())}))
        while len(one.wish.state.services.get(NET, {})) < SERVICES:
            time.sleep(0.05)
        one.sandboxes.wait_tried(one.wish.snapshot()[1], 30)
        for _ in range(rounds):
            for measure, work in ((ROUND_TRIP, round_trips), (CONNECTION, connections)):
                for subject, address in ((OURS, vip), (DIRECT, direct)):
                    figures.add(measure, subject, work(client, str(address)) * 1e6)


@contextmanager
def echo(space: Space) -> Iterator[None]:
    """Serve on port 80: send back what comes, a connection at a time."""
    listener = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.settimeout(None)
    listener.bind(("0.0.0.0", 80))
    listener.listen(128)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    while data := connection.recv(100):
                        connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def round_trips(client: Space, address: str, count: int = 2000) -> float:
    """Return the median of a byte's way there and back on an open connection."""
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect((address, 80))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trip() -> None:
            connection.sendall(b"x")
            connection.recv(1)

        return _median(trip, count)


def connections(client: Space, address: str, count: int = 300) -> float:
    """Return the median of the time until connected."""
    took = []
    for _ in range(count):
        with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            took.append(_median(lambda c=connection: c.connect((address, 80)), 1))  # type: ignore[misc]
    return statistics.median(took)


def _median(work: Callable[[], None], count: int) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    figures = Figures()
    if arguments.json:  # in namespaces of our own, see apart
        rounds = 3 if arguments.quick else 10
        tables(figures, rounds)
        packets(figures, rounds)
        print(json.dumps(figures.dump()))
    else:
        run(figures, quick=arguments.quick)
        print(table(figures.all()))


if __name__ == "__main__":
    main()
