"""One real host among simulated ones: an etcd, what other hosts write to it, a network, its rows.

All of it is made in the namespaces that `bench.scene.apart` gives to a program (processes, network, mounts),
and ends with them, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from bench.process import VTEP, Plugin, resident
from driver.cluster.etcd.client import EtcdClient
from driver.cluster.etcd.tls import PlainSessions
from driver.cluster.ledger.claims import Claim, Put, Withdraw
from driver.cluster.ledger.codec import (
    ROOT,
    encode_endpoint,
    encode_node,
    endpoint_key,
    endpoints_of,
    node_key,
)
from driver.kernel import netns
from driver.kernel.kinds import FLOOD_MAC
from driver.kernel.names import container_name, namespace_name, vxlan_name
from driver.kernel.netlink import links, rows
from driver.kernel.netlink.socket import Channel, Request, attribute
from driver.wish.records import EndpointRecord, NodeRecord
from driver.wish.values import Address, EndpointId, Mac, NetworkId, NodeId, Vni, mac_of, octets
from tests.cluster.harness import EtcdMember, b64, start_members
from tests.lab import etcd_binary

BATCH = 120
"""Records in a transaction, as hosts put them."""
_VNI = Vni(9000)
_PROBES = 200
_DELNEIGH, _GETNEIGH, _AF_BRIDGE, _SELF = 29, 30, 7, 2
_NDMSG = struct.Struct("=BxxxiHBB")

Rows = Mapping[Address, tuple[Mac, Address]]
"""What a VXLAN device is to know: inner address, its MAC, the outer address."""


def record(network: NetworkId, number: int, node: int) -> EndpointRecord:
    """The endpoint *number* (below 60,000) of a network, on simulated host *node*."""
    third, fourth = divmod(number, 250)
    address = IPv4Address(f"10.1.{third + 1}.{fourth + 1}")
    endpoint = EndpointId(f"{number:064x}")
    return EndpointRecord(network, address, mac_of(address), _node(node), endpoint)


def vtep_of(node: NodeId) -> Address:
    """The outer address of a simulated host."""
    return IPv4Address("198.18.0.1") + int(node, 16)


def _node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def rows_of(records: Iterable[EndpointRecord]) -> Rows:
    """What a host must know of *records*."""
    return {r.address: (r.mac, vtep_of(r.node)) for r in records}


class Others:
    """The simulated hosts: they write to etcd as real ones do, and need nothing else."""

    def __init__(self, member: EtcdMember) -> None:
        self._member = member
        self._client = EtcdClient(member.url, PlainSessions().session())

    def announce(self, records: Sequence[EndpointRecord]) -> None:
        """Put endpoints, as many in a transaction as a host would."""
        self._change([Put(*_line(one)) for one in records])

    def appear(self, count: int) -> None:
        """Put the records of *count* hosts."""
        nodes = [NodeRecord(_node(n), vtep_of(_node(n))) for n in range(count)]
        self._change([Put(node_key(node.id), encode_node(node)) for node in nodes])

    def withdraw(self, records: Iterable[EndpointRecord]) -> None:
        """Remove endpoints."""
        self._change([Withdraw(*_line(one)) for one in records])

    def read(self, network: NetworkId) -> float:
        """Read all of a network, as a host does that comes to it; return the seconds that it took."""
        began = time.perf_counter()
        self._client.read_prefixes({endpoints_of(network): 0})
        return time.perf_counter() - began

    def clear(self) -> None:
        """Remove all keys, of real hosts too."""
        self._member.call("kv/deleterange", timeout=60, key=b64(ROOT), range_end=b64(ROOT[:-1] + "0"))

    def compact(self) -> None:
        """Have etcd forget what was before, as it does every ten minutes in a Swarm."""
        revision = self._member.call("maintenance/status")["header"]["revision"]
        self._member.call("kv/compaction", timeout=60, revision=revision, physical=True)

    def close(self) -> None:
        self._client.close()

    def _change(self, claims: Sequence[Claim]) -> None:
        for first in range(0, len(claims), BATCH):
            self._client.change(claims[first : first + BATCH])


def _line(record: EndpointRecord) -> tuple[str, str]:
    return endpoint_key(record.network, record.address), encode_endpoint(record)


class Store:
    """A real etcd without fsync, as the Swarm leader's plugin runs one."""

    def __init__(self, folder: Path) -> None:
        (self.member,) = start_members(etcd_binary(), folder, 1)

    def size(self) -> float:
        """MiB of its file in use."""
        return int(self.member.call("maintenance/status")["dbSizeInUse"]) / 2**20

    def memory(self) -> float:
        """MiB resident."""
        assert self.member.process
        return resident(self.member.process.pid) / 1024

    def close(self) -> None:
        self.member.kill()


class Network:
    """A network with one container on the real host, as the engine asks for both."""

    def __init__(self, plugin: Plugin, network: NetworkId) -> None:
        self.id = network
        self._plugin = plugin
        self._endpoint = EndpointId("c0" * 32)
        self._ids = {"NetworkID": network, "EndpointID": self._endpoint}
        self._container: int | None = None

    def create(self) -> None:
        """Have the network on the host."""
        generic = {"com.docker.network.generic": {"vni": str(_VNI)}}
        subnet = {"AddressSpace": "", "Pool": "10.1.0.0/16", "Gateway": "10.1.0.1/16"}
        body = {"NetworkID": self.id, "Options": generic, "IPv4Data": [subnet], "IPv6Data": []}
        self._plugin.call("NetworkDriver.CreateNetwork", body)

    def join(self) -> None:
        """Start the container: its interface is moved into a namespace of its own."""
        interface = {"Address": "10.1.0.2/16", "AddressIPv6": "", "MacAddress": ""}
        made = {**self._ids, "Interface": interface, "Options": {}}
        self._plugin.call("NetworkDriver.CreateEndpoint", made)
        self._plugin.call("NetworkDriver.Join", {**self._ids, "SandboxKey": "", "Options": {}})
        self._container = netns.create()
        pin = f"/proc/{os.getpid()}/fd/{self._container}"
        run(f"ip link set {container_name(self._endpoint)} netns {pin}")

    def die_with_host(self) -> None:
        """Take container and namespace away, as a reboot does; the plugin is not running."""
        if self._container is not None:
            os.close(self._container)
            self._container = None
        pin = self._plugin.netns / namespace_name(self.id)
        if netns.is_pin(pin):
            with contextlib.closing(Forwarding(self._plugin, self.id)) as forwarding:
                forwarding.clear()
            netns.unpin(pin)

    def forwarding(self) -> Forwarding:
        """Open what the kernel holds of it."""
        return Forwarding(self._plugin, self.id)


class Forwarding:
    """The rows of a network's VXLAN device, asked of the kernel."""

    def __init__(self, plugin: Plugin, network: NetworkId) -> None:
        self._name = namespace_name(network)
        self.path = plugin.netns / self._name
        self._channel: Channel | None = None
        self._index = 0

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def clear(self) -> None:
        """Delete all devices at once: the namespace itself ends late, and its VNIs with it."""
        if self._open() and self._channel:
            links.remove(self._channel, [f"br{_VNI}", vxlan_name(_VNI)])

    def is_exactly(self, wanted: Rows) -> bool:
        """Tell whether there are all the rows of *wanted*, replication included, and no others."""
        return self._open() and self._read() == _rows(wanted)

    def await_exactly(self, wanted: Rows) -> float:
        """Wait until `is_exactly`; return when it was (perf_counter)."""
        probes = random.sample(sorted(wanted), min(_PROBES, len(wanted)))
        while True:
            until(self._open)
            for address in probes:  # those that are there already cost one question in all
                until(lambda a=address: self.has(a, *wanted[a]))  # type: ignore[misc]
            now = time.perf_counter()
            if self.is_exactly(wanted):
                return now
            time.sleep(0.01)

    def has(self, address: Address, mac: Mac, vtep: Address) -> bool:
        """Tell whether both rows of an endpoint are there."""
        return self._ask(socket.AF_INET, 0, 1, address.packed, octets(mac)) and self._ask(
            _AF_BRIDGE, _SELF, 2, octets(mac), vtep.packed
        )

    def remove(self, address: Address, mac: Mac) -> None:
        """Remove both rows of an endpoint behind the plugin's back."""
        assert self._channel
        neighbour = _NDMSG.pack(socket.AF_INET, self._index, 0, 0, 0) + attribute(1, address.packed)
        fdb = _NDMSG.pack(_AF_BRIDGE, self._index, 0, _SELF, 0) + attribute(2, octets(mac))
        self._channel.do(Request(_DELNEIGH, 0, neighbour), Request(_DELNEIGH, 0, fdb))

    def lacks(self, address: Address, mac: Mac) -> bool:
        """Tell whether neither row of an endpoint is there."""
        neighbour = self._ask(socket.AF_INET, 0, 1, address.packed, b"")
        return not neighbour and not self._ask(_AF_BRIDGE, _SELF, 2, octets(mac), b"")

    def _ask(self, family: int, flags: int, attribute_kind: int, key: bytes, value: bytes) -> bool:
        assert self._channel
        question = _NDMSG.pack(family, self._index, 0, flags, 0) + attribute(attribute_kind, key)
        answer = self._channel.ask(_GETNEIGH, question)
        return answer is not None and value in answer

    def _open(self) -> bool:
        if self._channel is None and netns.is_pin(self.path):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                self._channel = netns.inside(descriptor, Channel.here)
            finally:
                os.close(descriptor)
        if self._channel and not self._index:
            device = links.link(self._channel, vxlan_name(_VNI))
            self._index = device.index if device else 0
        return self._index > 0

    def _read(self) -> set[tuple[object, ...]]:
        assert self._channel
        fdb = rows.fdb_rows(rows.dump_fdb(self._channel, self._index), self._index)
        neighbours = rows.neighbour_rows(rows.dump_neighbours(self._channel))
        return {*((row.mac, row.vtep) for row in fdb), *((address, mac) for _, address, mac in neighbours)}


def _rows(wanted: Rows) -> set[tuple[object, ...]]:
    neighbours = {(address, mac) for address, (mac, _) in wanted.items()}
    flood = {(FLOOD_MAC, vtep) for _, vtep in wanted.values()}
    return {*wanted.values(), *neighbours, *flood}


def until(fact: Callable[[], bool], timeout: float = 60.0, pause: float = 0.0005) -> float:
    """Wait until *fact* holds; return when (perf_counter)."""
    deadline = time.perf_counter() + timeout
    while not fact():
        assert time.perf_counter() < deadline, "it did not come about"
        time.sleep(pause)
    return time.perf_counter()


def underlay() -> None:
    """Give the namespace that we are in a loopback and the VTEP address."""
    run("ip link set lo up && ip link add u0 type bridge && ip link set u0 up")
    run(f"ip address add {VTEP}/24 dev u0")


def run(command: str) -> None:
    """Run a shell command; fail with what it said."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
