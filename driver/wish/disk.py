"""The state on disk: its durable part in one JSON file."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

from driver.wish.errors import DiskError
from driver.wish.model import Endpoint, Host, Network, Phase, Segment, Subnet
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni
from lib.committed import Disk
from lib.json_file import JsonFile

VERSION = 1


class WishFile(JsonFile[State]):
    """The file at a path; what it refuses is a DiskError."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            version=VERSION,
            encode=encode,
            decode=decode,
            loss="makes the plugin recover what it can from the kernel and the engine",
            refusal=_refusal,
        )


def load_or_new(disk: Disk[State]) -> State:
    """Return the stored state, or that of a host that has just been given its identity."""
    found = disk.load()
    if found is not None:
        return found
    fresh = State(Host(NodeId(uuid4().hex)))
    disk.save(fresh)
    return fresh


def encode(state: State) -> dict[str, Any]:
    """Turn the durable part into plain JSON values."""
    return {
        "host": _host(state.host),
        "networks": [_network(network) for network in state.networks.values()],
        "endpoints": [_endpoint(endpoint) for endpoint in state.endpoints.values()],
        "allocations": {network: list(vnis) for network, vnis in state.allocations.items()},
        **({"refused": dict(state.refused)} if state.refused else {}),
    }


def decode(body: dict[str, Any]) -> State:
    """Turn plain JSON values, as encode made them, into a state."""
    networks = [_read_network(item) for item in body["networks"]]
    endpoints = [_read_endpoint(item) for item in body["endpoints"]]
    return State(
        host=_read_host(body["host"]),
        networks={network.id: network for network in networks},
        endpoints={endpoint.id: endpoint for endpoint in endpoints},
        allocations={NetworkId(n): tuple(map(Vni, v)) for n, v in body["allocations"].items()},
        refused={NetworkId(n): str(reason) for n, reason in body.get("refused", {}).items()},
    )


def _host(host: Host) -> dict[str, Any]:
    """Leave out what the former version does not know when there is nothing to say."""
    found = {"id": host.id, "vtep": _text(host.vtep)}
    later = {"swarm_port": host.swarm_port, "member": host.member, "path_mtu": host.path_mtu}
    return found | {name: value for name, value in later.items() if value}


def _read_host(item: dict[str, Any]) -> Host:
    vtep = ip_address(item["vtep"]) if item["vtep"] else None
    swarm_port, member, path_mtu = item.get("swarm_port"), item.get("member", ""), item.get("path_mtu")
    return Host(NodeId(item["id"]), vtep, swarm_port, member, path_mtu)


def _network(network: Network) -> dict[str, Any]:
    """Store what a restart needs. The former version reads the same fields: it must find each of them."""
    return {
        "id": network.id,
        "segments": [
            {
                "vni": segment.vni,
                "subnets": [_subnet(subnet) for subnet in segment.subnets],
            }
            for segment in network.segments
        ],
        "port": network.port,
        "mtu": network.mtu,
        "underlay_mtu": network.underlay_mtu,
        "internal": network.internal,
    }


def _read_network(item: dict[str, Any]) -> Network:
    """Index every field, so that one missing raises: a guess would rebuild the network differently."""
    segments = tuple(
        Segment(
            Vni(segment["vni"]),
            tuple(map(_read_subnet, segment["subnets"])),
        )
        for segment in item["segments"]
    )
    return Network(
        NetworkId(item["id"]), segments, item["port"], item["mtu"], item["underlay_mtu"], item["internal"]
    )


def _subnet(subnet: Subnet) -> dict[str, Any]:
    """Leave out what the former version does not know when there is nothing to say."""
    found = {"prefix": str(subnet.prefix), "gateway": _text(subnet.gateway)}
    return {**found, "reserved": sorted(map(str, subnet.reserved))} if subnet.reserved else found


def _read_subnet(item: dict[str, Any]) -> Subnet:
    return Subnet(
        ip_network(item["prefix"]),
        ip_address(item["gateway"]) if item["gateway"] else None,
        frozenset(map(ip_address, item.get("reserved", ()))),
    )


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "network": endpoint.network,
        "interfaces": [str(interface) for interface in endpoint.interfaces],
        "mac": endpoint.mac,
        "phase": endpoint.phase.value,
        "sandbox": endpoint.sandbox,
        **({"claimed": endpoint.claimed} if endpoint.claimed else {}),
        **({"multicast": True} if endpoint.multicast else {}),
    }


def _read_endpoint(item: dict[str, Any]) -> Endpoint:
    return Endpoint(
        EndpointId(item["id"]),
        NetworkId(item["network"]),
        tuple(ip_interface(text) for text in item["interfaces"]),
        Mac(item["mac"]),
        Phase(item["phase"]),
        item.get("sandbox", ""),  # of a version that did not know it
        item.get("claimed", 0),
        item.get("multicast", False),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _refusal(path: Path, problem: str, remedy: str) -> DiskError:
    return DiskError(f"state file {path} {problem}; {remedy}")
