"""The state on disk: all pools in one JSON file, their addresses as runs ("1-5,9")."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from ipam.addresses import AddressSet
from ipam.errors import DiskError
from ipam.pools import IpamState, Network, Pool, PoolKey, Space
from lib.json_file import JsonFile

VERSION = 1


class LeaseFile(JsonFile[IpamState]):
    """The file at a path; what it refuses is a DiskError."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            version=VERSION,
            encode=encode,
            decode=decode,
            loss="makes the plugin recover what it can from the engine",
            refusal=partial(DiskError, "state file"),
        )


def encode(state: IpamState) -> dict[str, Any]:
    """Turn what must last into plain JSON values."""
    return {
        "ula_id": f"{state.ula_id:010x}",
        "pools": [_pool(key, pool) for key, pool in state.pools.items()],
    }


def decode(body: dict[str, Any]) -> IpamState:
    """Turn plain JSON values, as encode made them, into a state."""
    return IpamState(int(body["ula_id"], 16), dict(map(_read_pool, body["pools"])))


def _pool(key: PoolKey, pool: Pool) -> dict[str, Any]:
    return {
        "space": key[0].value,
        "prefix": str(pool.prefix),
        "leases": pool.leases.to_text(),
        "gateways": pool.gateways.to_text(),
        "cursors": {str(sub or ""): last for sub, last in pool.cursors.items()},
        "networks": pool.networks,
        "swarm": pool.swarm,
    }


def _read_pool(row: dict[str, Any]) -> tuple[PoolKey, Pool]:
    """Convert every field, and raise for what does not fit: a damaged pool must not give an address twice."""
    prefix = ip_network(row["prefix"])
    cursors: dict[Network | None, int | None] = {
        ip_network(sub) if sub else None: last if last is None else int(last)
        for sub, last in row["cursors"].items()
    }
    pool = Pool(
        prefix,
        leases=AddressSet.from_text(row["leases"], prefix.num_addresses),
        gateways=AddressSet.from_text(row["gateways"], prefix.num_addresses),
        cursors=cursors,
        networks=int(row["networks"]),
        swarm=bool(row["swarm"]),
    )
    return (Space(row["space"]), prefix), pool
