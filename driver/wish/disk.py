"""The state on disk: one JSON file, replaced whole, checked when read.

A write goes to a temporary file in the same directory, is synced, renamed over the old
one, and the directory is synced: after a crash at any point one of the two is there, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from driver.wish.errors import DiskError
from driver.wish.model import Endpoint, Host, Network, Phase, Segment, Subnet
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni

VERSION = 1


class Disk(Protocol):
    """Where the durable part of the state lives."""

    def load(self) -> State | None:
        """Return the stored state, None when there never was one; raise DiskError when it is not usable."""

    def save(self, state: State) -> None:
        """Store the durable part; raise DiskError when it is not safely on disk."""


class WishFile:
    """A state file. *path*'s directory is made when it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> State | None:
        """Read the file; a leftover of a torn write is removed, damage and newer formats are refused."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_temporary()
            text = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError(f"state file {self._path}: {error.strerror}: make it readable") from error
        return self._decode(text)

    def save(self, state: State) -> None:
        """Write the file; on failure the old one stays."""
        body = json.dumps(encode(state), separators=(",", ":"), sort_keys=True)
        document = json.dumps({"version": VERSION, "sha256": _digest(body)})[:-1] + f', "state": {body}}}\n'
        try:
            self._write(document.encode())
        except OSError as error:
            self._drop_temporary()
            raise DiskError(
                f"state file {self._path}: {error.strerror}: nothing was changed; "
                "free space or make the directory writable, then try again"
            ) from error

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(self._path.name + ".new")

    def _drop_temporary(self) -> None:
        with contextlib.suppress(OSError):  # on a read-only disk even the removal of nothing fails
            self._temporary.unlink()

    def _write(self, data: bytes) -> None:
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._temporary.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _decode(self, data: bytes) -> State:
        try:
            document = json.loads(data)
            version, body = document["version"], document["state"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable("is damaged") from error
        if version != VERSION:
            raise self._unusable(f"has format {version!r}, this program reads {VERSION}")
        canonical = json.dumps(body, separators=(",", ":"), sort_keys=True)
        if document.get("sha256") != _digest(canonical):
            raise self._unusable("is damaged (its checksum does not fit)")
        return decode(body)

    def _unusable(self, what: str) -> DiskError:
        return DiskError(
            f"state file {self._path} {what}: it was left as it is; start a version that reads it, restore "
            "it from a backup, or move it away to start with no networks (running containers then stay cut "
            "off until they are restarted)"
        )


class MemoryDisk:
    """Keeps the state of a process that needs none after it, such as a test."""

    def __init__(self, state: State | None = None) -> None:
        self.saved = state

    def load(self) -> State | None:
        """Return what was saved last."""
        return self.saved

    def save(self, state: State) -> None:
        """Remember the durable part of *state*, as a file would."""
        self.saved = decode(encode(state))


def load_or_new(disk: Disk) -> State:
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
        "host": {"id": state.host.id, "vtep": _text(state.host.vtep)},
        "networks": [_network(network) for network in state.networks.values()],
        "endpoints": [_endpoint(endpoint) for endpoint in state.endpoints.values()],
        "allocations": {network: list(vnis) for network, vnis in state.allocations.items()},
    }


def decode(body: dict[str, Any]) -> State:
    """Turn plain JSON values, as encode made them, into a state."""
    networks = [_read_network(item) for item in body["networks"]]
    endpoints = [_read_endpoint(item) for item in body["endpoints"]]
    vtep = body["host"]["vtep"]
    return State(
        host=Host(NodeId(body["host"]["id"]), ip_address(vtep) if vtep else None),
        networks={network.id: network for network in networks},
        endpoints={endpoint.id: endpoint for endpoint in endpoints},
        allocations={NetworkId(n): tuple(map(Vni, v)) for n, v in body["allocations"].items()},
    )


def _network(network: Network) -> dict[str, Any]:
    return {
        "id": network.id,
        "segments": [
            {
                "vni": segment.vni,
                "subnets": [{"prefix": str(s.prefix), "gateway": _text(s.gateway)} for s in segment.subnets],
            }
            for segment in network.segments
        ],
        "port": network.port,
        "mtu": network.mtu,
        "underlay_mtu": network.underlay_mtu,
        "internal": network.internal,
    }


def _read_network(item: dict[str, Any]) -> Network:
    segments = tuple(
        Segment(
            Vni(segment["vni"]),
            tuple(
                Subnet(ip_network(s["prefix"]), ip_address(s["gateway"]) if s["gateway"] else None)
                for s in segment["subnets"]
            ),
        )
        for segment in item["segments"]
    )
    return Network(
        NetworkId(item["id"]), segments, item["port"], item["mtu"], item["underlay_mtu"], item["internal"]
    )


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "network": endpoint.network,
        "interfaces": [str(interface) for interface in endpoint.interfaces],
        "mac": endpoint.mac,
        "phase": endpoint.phase.value,
        "sandbox": endpoint.sandbox,
    }


def _read_endpoint(item: dict[str, Any]) -> Endpoint:
    return Endpoint(
        EndpointId(item["id"]),
        NetworkId(item["network"]),
        tuple(ip_interface(text) for text in item["interfaces"]),
        Mac(item["mac"]),
        Phase(item["phase"]),
        item.get("sandbox", ""),  # of a version that did not know it
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
