"""Machines for kernel tests: the whole driver on the real kernel, containers, meters of traffic."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address, ip_interface, ip_network

from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.cluster.peering import Peering
from driver.kernel import Kernel, netns
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.host import NetlinkKernel
from driver.kernel.names import container_name, namespace_name, port_name
from driver.mode import InSwarm
from driver.overlay import Overlay
from driver.reconcile.networks import NetworkReconciler
from driver.reconcile.sandboxes import SandboxReconciler
from driver.wish.model import Host as HostState
from driver.wish.model import Subnet
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId
from driver.wish.wish import Wish
from tests.fakes.disk import MemoryDisk
from tests.kernel.hosts import Host, Space, eventually

_NO_PMTU_DISCOVERY = (socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: Python has no names


class Machine:
    """A host with the driver on it. *number* is the last octet of its VTEP address."""

    def __init__(self, host: Host, number: int, cluster: MemoryStore) -> None:
        self.host = host
        self.vtep = ip_address(f"192.0.2.{number}")
        self.cluster = cluster
        self.containers: list[Space] = []
        self._make(HostState(NodeId(f"node{number}"), self.vtep), host.kernel)

    def _make(self, host: HostState, kernel: Kernel) -> None:
        self.wish = Wish(MemoryDisk(State(host)))
        self.reconciler = NetworkReconciler(self.wish, kernel, audit_interval=3600)
        self.sandboxes = SandboxReconciler(
            self.wish, NetlinkSandboxes(), wait_rows=self.reconciler.wait_tried, audit_interval=0.2
        )
        self.peering = Peering(self.wish, MemoryControlPlane(host.id, self.cluster))
        self.overlay = Overlay(self.wish, self.reconciler, self.peering, InSwarm())

    def start(self) -> None:
        self.reconciler.start()
        self.start_others()

    def start_others(self) -> None:
        self.sandboxes.start()
        self.peering.start()

    def lose_records(self) -> None:
        """End, and begin again with an empty wish; only the reconciler of networks runs then.

        As in a Swarm, where the engine says the host's address a moment later.
        """
        self.peering.stop(leave=False)
        self.sandboxes.stop()
        self.reconciler.stop()
        kernel = self.host.inside(lambda: NetlinkKernel(self.host.directory))
        self._make(HostState(self.wish.state.host.id), kernel)
        self.reconciler.start()

    def create(self, network: str, prefix: str, vni: int) -> None:
        """Make a network whose gateway is the first address."""
        parsed = ip_network(prefix)
        self.overlay.create_network(network, {"vni": str(vni)}, [Subnet(parsed, parsed[1])], internal=False)

    def attach(self, network: str, address: str, length: int = 24, mac: Mac | None = None) -> Space:
        """Start a container, as the engine does."""
        endpoint = endpoint_id(network, address)
        self.overlay.create_endpoint(network, endpoint, [ip_interface(f"{address}/{length}")], mac, {})
        space = Space(netns.create())
        # As the engine has it in a network without IPv6; what IPv6 says at first would teach bridges.
        space.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
        self.containers.append(space)
        self.overlay.join(network, endpoint, space.path)
        self.host.run(f"ip link set {container_name(EndpointId(endpoint))} netns {space.path} name eth0")
        space.run(f"ip address add {address}/{length} dev eth0; ip link set eth0 up")
        assert eventually(lambda: self._forwards(network, endpoint))
        return space

    def _forwards(self, network: str, endpoint: str) -> bool:
        """Tell whether the bridge passes frames on to a container.

        It hears of the device from a worker of the kernel, linkwatch: on a busy machine some time later.
        """
        with closing(self.host.overlay(namespace_name(NetworkId(network)))) as overlay:
            states = {one["ifname"]: one["state"] for one in overlay.json("bridge -j link show")}
        return bool(states[port_name(EndpointId(endpoint))] == "forwarding")

    def stop(self) -> None:
        self.peering.stop(leave=False)
        self.sandboxes.stop()
        self.reconciler.stop()
        for space in self.containers:
            space.close()


def endpoint_id(network: str, address: str) -> str:
    """An id whose first characters tell endpoints apart, as the engine's do."""
    return (ip_address(address).packed.hex() + network.encode().hex() + "0" * 64)[:64]


def pair(hosts: list[Host]) -> list[Machine]:
    """Two machines on one wire, with one store."""
    a, b = hosts
    cluster = MemoryStore()
    a.run(f"ip link add u0 type veth peer name u0 netns {b.path}")
    for number, host in enumerate(hosts, 1):
        host.run(f"ip address add 192.0.2.{number}/24 dev u0 && ip link set u0 up")
    machines = [Machine(host, number, cluster) for number, host in enumerate(hosts, 1)]
    for machine in machines:
        machine.start()
    return machines


@contextmanager
def running(hosts: list[Host]) -> Iterator[list[Machine]]:
    """A pair that ends with the context."""
    machines = pair(hosts)
    try:
        yield machines
    finally:
        for machine in machines:
            machine.stop()


class Meter:
    """Sends an ICMP echo request every *pause* seconds and counts the answers that never came."""

    def __init__(self, source: Space, target: str, pause: float = 0.005) -> None:
        self._socket = source.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._target, self._pause = target, pause
        self.sent: list[float] = []
        self._answered: set[int] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    @property
    def lost(self) -> int:
        """Requests without an answer; to be asked after the end."""
        return len(self.sent) - len(self._answered)

    @property
    def outage(self) -> float:
        """Seconds from the first request that was lost to the last."""
        lost = [then for number, then in enumerate(self.sent) if number not in self._answered]
        return lost[-1] - lost[0] if lost else 0.0

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._send(len(self.sent))
            self._receive(self._pause)
        self._receive(0.3)

    def _send(self, number: int) -> None:
        body = struct.pack("!HHI", 4242, number & 0xFFFF, number)
        total = 0x0800 + sum(struct.unpack("!4H", body))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        self.sent.append(time.monotonic())
        with suppress(OSError):  # no route, no neighbour: lost
            self._socket.sendto(struct.pack("!BBH", 8, 0, ~total & 0xFFFF) + body, (self._target, 0))

    def _receive(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
            answer = self._socket.recv(2048)[20:]
            if answer[0] == 0 and answer[4:6] == struct.pack("!H", 4242):
                self._answered.add(struct.unpack("!I", answer[8:12])[0])


class Stream:
    """A TCP connection from *source* to *address*, which is *target*'s; full segments, all the time."""

    def __init__(self, source: Space, target: Space, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with target.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            self._sender = source.socket(family, socket.SOCK_STREAM)
            self._sender.connect((address, listener.getsockname()[1]))
            self._receiver, _ = listener.accept()
        self.received = 0
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for opened in (self._sender, self._receiver):
            with suppress(OSError):  # not connected any more
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()

    def flows(self) -> bool:
        """Tell whether 4 MB more arrive, soon."""
        goal = self.received + 4_000_000
        return eventually(lambda: self.received > goal)

    def _send(self) -> None:
        with suppress(OSError):  # stuck for longer than its timeout, or stopped
            while not self._stopped.wait(0.001):
                self._sender.sendall(bytes(65536))

    def _receive(self) -> None:
        with suppress(OSError):
            while got := self._receiver.recv(1 << 20):
                self.received += len(got)


def datagrams(source: Space, target: Space, address: str, size: int, *, df: bool = True) -> list[bool]:
    """Send five datagrams, one after another, with DF as usual or without; tell which arrived."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        source.socket(family, socket.SOCK_DGRAM) as sender,
        target.socket(family, socket.SOCK_DGRAM) as receiver,
    ):
        if not df:
            sender.setsockopt(*_NO_PMTU_DISCOVERY)
        receiver.bind((address, 0))
        receiver.settimeout(0.3)
        arrived = []
        for number in range(5):
            sender.sendto(bytes([number]) * size, receiver.getsockname())
            with suppress(TimeoutError):
                arrived.append(receiver.recv(65536))
    return [bytes([number]) * size in arrived for number in range(5)]
