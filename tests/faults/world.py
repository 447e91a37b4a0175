"""All that the product has made on a host, from kernel, disk and store alone, as plain values to compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from driver.kernel import netns
from driver.kernel.host import NetlinkKernel
from driver.kernel.netlink import links
from driver.kernel.netlink.socket import Channel

_IGNORED = ("lo", "eth0")

_TIME = re.compile(r',"claimed":\d+')
"""When a claim was made: another time in every trial."""


def snapshot(folder: Path, sandbox: int | None, store: dict[str, str]) -> dict[str, Any]:
    """Look at everything below *folder*, in this namespace, in the *sandbox* and in the *store*."""
    pins = folder / "run" / "netns"
    kernel = NetlinkKernel(pins)
    state = _state(folder / "state" / "state.json")
    try:
        names = sorted(p.name for p in pins.glob("*"))
        return {
            "host": _devices(Channel.here()),
            "sandbox": _devices(netns.inside(sandbox, Channel.here)) if sandbox is not None else {},
            "pins": [n for n in names if netns.is_pin(pins / n) or not _known(n, state)],
            "devices": {name: _pinned(pins / name) for name in names if netns.is_pin(pins / name)},
            "objects": {
                n: sorted(map(str, found.values())) for n in names if (found := kernel.read_place(n))
            },
            "files": sorted(p.name for p in (folder / "state").glob("*")),
            "state": state,
            "ipam": _ipam(folder / "state" / "ipam.json"),
            "store": {key: _TIME.sub("", value) for key, value in sorted(store.items())},
        }
    finally:
        kernel.close()


def _known(name: str, state: dict[str, Any]) -> bool:
    """Tell whether a network has that name: an empty file may wait for its next container."""
    return any(name == f"pyoverlay-{network[:12]}" for network in state.get("networks", ()))


def _pinned(path: Path) -> dict[str, Any]:
    with path.open() as pin:
        return _devices(netns.inside(pin.fileno(), Channel.here))


def _devices(channel: Channel) -> dict[str, Any]:
    try:
        found = links.links(channel)
    finally:
        channel.close()
    return {
        one.name: [one.kind, one.mac if one.name.startswith("pyo") else "", one.mtu, one.up, one.alias]
        for one in found.values()
        if one.name not in _IGNORED
    }


def _state(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    body: dict[str, Any] = json.loads(path.read_text())["state"]
    return {
        "networks": [network["id"] for network in body["networks"]],
        "endpoints": {e["id"][:4]: e["phase"] for e in body["endpoints"]},
        "allocations": body["allocations"],
    }


def _ipam(path: Path) -> list[list[str]]:
    """The pools with their leases; where the next search begins is nobody's business."""
    if not path.exists():
        return []
    pools = json.loads(path.read_text())["state"]["pools"]
    return [[pool["prefix"], pool["leases"], pool["gateways"]] for pool in pools]


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say what is missing and what is left over; empty when nothing is.

    Records in *expected*'s "forgotten" may be there or not: the engine does not know of them.
    """
    parts = []
    forgotten = expected.get("forgotten", ())
    networks = [n for n in found["state"]["networks"] if n not in forgotten]
    endpoints = {e: p for e, p in found["state"]["endpoints"].items() if e not in forgotten or p == "joined"}
    found = {**found, "state": {**found["state"], "networks": networks, "endpoints": endpoints}}
    for part in expected.keys() - {"forgotten"}:
        if part == "files":  # ipam.json appears with the first pool
            if extra := set(found[part]) - {"state.json", "ipam.json"}:
                parts.append(f"files left over: {sorted(extra)}")
        elif expected[part] != found[part]:
            parts.append(f"{part} should be {expected[part]}, is {found[part]}")
    return "; ".join(parts)
