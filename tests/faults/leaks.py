"""Resources that only ever grow: counted on every host, to be compared later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.faults.facts import PREFIX, processes, store_of
from tests.lab import Host, Lab

RSS_GROWTH = 1.5
"""How many times its size after the warm-up a process may have at the end, over a floor of RSS_FLOOR."""
RSS_FLOOR = 30.0
GROWTH = {"fds": 10, "threads": 12, "namespaces": 0, "veths": 0}


@dataclass(frozen=True, slots=True)
class Usage:
    """What the plugin and the store of a host hold."""

    fds: int
    threads: int
    rss: float
    """MiB, of the plugin's processes together."""
    etcd_rss: float
    namespaces: int
    veths: int

    def __str__(self) -> str:
        return (
            f"fds {self.fds}, threads {self.threads}, RSS {self.rss:.0f} MiB (etcd {self.etcd_rss:.0f}),"
            f" namespaces {self.namespaces}, veths {self.veths}"
        )


def usage(host: Host) -> Usage:
    """Count now."""
    plugin, etcd = processes(host, "plugin.cli serve"), processes(host, "etcd --name=leader")
    devices = host.run(["ip", "-br", "link", "show", "type", "veth"]).stdout.splitlines()
    return Usage(
        fds=sum(_fds(host, pid) for pid in plugin),
        threads=sum(_status(host, pid, "Threads") for pid in plugin),
        rss=sum(_status(host, pid, "VmRSS") for pid in plugin) / 1024,
        etcd_rss=sum(_status(host, pid, "VmRSS") for pid in etcd) / 1024,
        namespaces=sum(p.name.startswith(PREFIX) for p in host.path("/run/netns").iterdir()),
        veths=sum(not line.startswith(("eth", "lo")) for line in devices),
    )


def all_usage(lab: Lab) -> dict[str, Usage]:
    return {host.name: usage(host) for host in lab.hosts}


def store_keys(lab: Lab) -> int:
    return len(store_of(lab) or {})


def leaks(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> list[str]:
    """What has grown more than it may between two moments at which the same containers ran."""
    found = []
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        for what, room in GROWTH.items():
            if getattr(new, what) > getattr(old, what) + room:
                found.append(f"{name}: {what} {getattr(old, what)} -> {getattr(new, what)}")
        if new.rss > old.rss * RSS_GROWTH + RSS_FLOOR:
            found.append(f"{name}: RSS {old.rss:.0f} -> {new.rss:.0f} MiB")
    return found


def _fds(host: Host, pid: int) -> int:
    try:
        return sum(1 for _ in host.path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _status(host: Host, pid: int, field: str) -> int:
    try:
        text = host.path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
