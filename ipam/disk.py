"""Where the state lives: a Protocol, and one JSON file.

The file holds a version, a checksum of the state's canonical JSON, and the state; sets of addresses
are runs ("1-5,9"). It is replaced as a whole: written beside, flushed to the disk, renamed over the
old one, and the directory flushed, so that after a crash at any point either the old or the new
state is there. What cannot be trusted is refused and never overwritten: the addresses in it are in
use, and a person can repair what a program may only guess.
"""

import contextlib
import hashlib
import json
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol

from ipam.addresses import AddressSet
from ipam.errors import DiskError
from ipam.pools import IpamState, Network, Pool, PoolKey, Space

VERSION = 1


class Disk(Protocol):
    """Keeps one state. `save` returns only when the state would survive a power cut."""

    def load(self) -> IpamState | None:
        """The state saved last, None if there never was one; DiskError if it cannot be trusted."""

    def save(self, state: IpamState) -> None:
        """Replace what is kept; DiskError if that fails, and then the old state is kept."""


def _canonical(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _encode_pool(key: PoolKey, pool: Pool) -> dict[str, Any]:
    return {
        "space": key[0].value,
        "prefix": str(pool.prefix),
        "leases": pool.leases.to_text(),
        "gateways": pool.gateways.to_text(),
        "cursors": {str(sub or ""): last for sub, last in pool.cursors.items()},
        "networks": pool.networks,
        "swarm": pool.swarm,
    }


def _decode_pool(row: dict[str, Any]) -> tuple[PoolKey, Pool]:
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


def encode(state: IpamState) -> bytes:
    """The file's bytes for *state*."""
    body = {
        "ula_id": f"{state.ula_id:010x}",
        "pools": [_encode_pool(key, pool) for key, pool in state.pools.items()],
    }
    checksum = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({"version": VERSION, "sha256": checksum, "state": body}) + b"\n"


def decode(data: bytes) -> IpamState:
    """The inverse of `encode`; ValueError says in a clause what is wrong with *data*."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is damaged (it is not complete JSON)") from None
    if not isinstance(content, dict) or not isinstance(version := content.get("version"), int):
        raise ValueError("is damaged (it has no version)")
    if version > VERSION:
        raise ValueError(f"was written by a newer version (format {version}; this one knows {VERSION})")
    body: Any = content.get("state")
    if content.get("sha256") != hashlib.sha256(_canonical(body)).hexdigest():
        raise ValueError("is damaged (its checksum does not match)")
    try:
        return IpamState(int(body["ula_id"], 16), dict(map(_decode_pool, body["pools"])))
    except Exception as error:  # whatever a well-formed but wrong content makes of itself
        raise ValueError(f"is damaged ({type(error).__name__}: {error})") from error


class LeaseFile:
    """The state in one file; not for two processes at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.new")
        self._trusted = False

    def load(self) -> IpamState | None:
        """See `Disk.load`. A half-written new file from a crash is removed, unread."""
        self._drop_temporary()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            self._trusted = True
            return None
        except OSError as error:
            raise self._failure(f"cannot be read ({error.strerror})", "make it readable") from error
        try:
            state = decode(data)
        except ValueError as error:
            way_out = (
                "run the version that wrote it or restore a backup; or move it away, which forgets every "
                "address given so far, after all containers with such addresses were stopped"
            )
            raise self._failure(str(error), way_out) from error
        self._trusted = True
        return state

    def save(self, state: IpamState) -> None:
        """See `Disk.save`. Refused until `load` has succeeded."""
        if not self._trusted:
            raise self._failure(
                "was not loaded, so it is not overwritten", "look at the error of its loading"
            )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._replace(encode(state))
        except OSError as error:
            self._drop_temporary()
            raise self._failure(
                f"cannot be written ({error.strerror})", "make room or mend the disk"
            ) from error

    def _drop_temporary(self) -> None:
        with contextlib.suppress(OSError):  # on a read-only disk even the removal of nothing fails
            self._temporary.unlink()

    def _replace(self, data: bytes) -> None:
        with open(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _failure(self, problem: str, way_out: str) -> DiskError:
        return DiskError("state file", self._path, problem, way_out)
