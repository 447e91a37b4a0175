"""What is really there: read from the kernels, the engines, the disks and the store of a lab."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.e2e.containers import DRIVER
from tests.lab import CommandError, Host, Lab

FLOOD = "00:00:00:00:00:00"
PREFIX = "pyoverlay-"


@dataclass(frozen=True, slots=True, order=True)
class Attached:
    """A running container in one of our networks, as its engine tells."""

    network: str
    address: str
    mac: str
    endpoint: str
    pid: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Space:
    """One namespace of ours, as the kernel tells."""

    fdb: frozenset[tuple[str, str]] = frozenset()
    """(MAC, VTEP) of the VXLAN devices' permanent rows, replication rows included."""
    neighbours: frozenset[tuple[str, str]] = frozenset()
    """(address, MAC) of the VXLAN devices' permanent rows."""
    ports: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()
    """Our devices that are not up, or lie on no bridge."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """All that matters of one host."""

    name: str
    vtep: str
    attached: tuple[Attached, ...] = ()
    networks: frozenset[str] = frozenset()
    """Networks of our driver that the engine knows here."""
    spaces: Mapping[str, Space] = field(default_factory=dict)
    """By network, the first twelve characters of its id."""
    devices: frozenset[str] = frozenset()
    """Devices of ours that lie about in the host's own namespace."""
    foreign: str = ""
    """What is not ours, in one text; see `plant`."""
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that matters of a lab; *store* is None while there is none that answers."""

    hosts: tuple[HostFacts, ...]
    store: Mapping[str, Mapping[str, str]] | None = None


DUMP_STORE = """
import json, os, socket, ssl, sys, tempfile
folder, address = sys.argv[1:]
context = ssl.create_default_context(cafile=folder + "/swarm-root-ca.crt")
with tempfile.NamedTemporaryFile("w") as key:
    # The PEM header lines are Swarm's own; OpenSSL does not read past them.
    key.write("\\n".join(l for l in open(folder + "/swarm-node.key").read().splitlines() if ":" not in l))
    key.flush()
    context.load_cert_chain(folder + "/swarm-node.crt", key.name)
raw = socket.create_connection((address, 2389), 3)
with context.wrap_socket(raw, server_hostname="swarm-manager") as tls:
    body = '{"key": "L3B5b3ZlcmxheS8=", "range_end": "L3B5b3ZlcmxheTA="}'  # all below /pyoverlay/
    head = "POST /v3/kv/range HTTP/1.0\\r\\nContent-Length: " + str(len(body)) + "\\r\\n\\r\\n"
    tls.sendall((head + body).encode())
    print(tls.makefile("rb").read().split(b"\\r\\n\\r\\n", 1)[1].decode())
"""


def read(lab: Lab, vteps: Mapping[str, str] | None = None) -> Facts:
    """Look at all hosts at once; *vteps* names those whose VTEP is not their first address."""
    with ThreadPoolExecutor(4) as pool:
        store = pool.submit(store_of, lab)
        hosts = pool.map(lambda host: host_facts(host, (vteps or {}).get(host.name, host.address)), lab.hosts)
        return Facts(tuple(hosts), store.result())


def host_facts(host: Host, vtep: str) -> HostFacts:
    """Look at one host."""
    ours = our_networks(host)
    root = host.path("/run/netns")
    names = sorted(path.name for path in root.iterdir() if path.name.startswith(PREFIX))
    links = _json(host, "", "ip", "-j", "link")
    return HostFacts(
        name=host.name,
        vtep=vtep,
        attached=tuple(attached(host, ours)),
        networks=frozenset(ours),
        spaces={name.removeprefix(PREFIX): space(host, name) for name in names},
        devices=frozenset(d["ifname"] for d in links if d["ifname"].startswith(("pyo", "port"))),
        foreign=foreign(host),
        state=state(host),
    )


def our_networks(host: Host) -> list[str]:
    """Ids of the networks of our driver that the engine knows."""
    listed = json.loads(host.api("GET", "/networks"))
    return [network["Id"] for network in listed if network["Driver"] == DRIVER]


def attached(host: Host, networks: list[str]) -> list[Attached]:
    """The running containers in *networks*."""
    found = []
    for listed in json.loads(host.api("GET", "/containers/json")):
        ends = [e for e in listed["NetworkSettings"]["Networks"].values() if e["NetworkID"] in networks]
        if not ends:
            continue
        try:
            whole = json.loads(host.api("GET", f"/containers/{listed['Id']}/json"))
        except CommandError:  # it has gone since
            continue
        pid = whole["State"]["Pid"]
        found += [
            Attached(e["NetworkID"], e["IPAddress"], e["MacAddress"], e["EndpointID"], pid, whole["Name"])
            for e in ends
            if pid and e["EndpointID"]
        ]
    return found


def space(host: Host, name: str) -> Space:
    """What one namespace of ours holds."""
    links = [
        d for d in _json(host, name, "ip", "-j", "-d", "link") if d.get("ifalias", "").startswith("pyov")
    ]
    kinds = {d["ifname"]: d.get("linkinfo", {}).get("info_kind", "") for d in links}
    vxlans = {name for name, kind in kinds.items() if kind == "vxlan"}
    fdb = _json(host, name, "bridge", "-j", "fdb") if vxlans else []
    neighbours = _json(host, name, "ip", "-j", "neigh", "show", "nud", "permanent") if vxlans else []
    return Space(
        frozenset((r["mac"], r["dst"]) for r in fdb if r["ifname"] in vxlans and "dst" in r),
        frozenset((r["dst"], r["lladdr"]) for r in neighbours if r["dev"] in vxlans and "lladdr" in r),
        frozenset(name for name, kind in kinds.items() if kind == "veth"),
        frozenset(
            d["ifname"]
            for d in links
            if "UP" not in d["flags"] or (kinds[d["ifname"]] != "bridge" and "master" not in d)
        ),
    )


def _json(host: Host, namespace: str, *argv: str) -> list[dict[str, Any]]:
    """The answer of an iproute2 command in a namespace of the host; nothing if that has gone since."""
    where = host.path(f"/run/netns/{namespace}") if namespace else f"/proc/{host.spaces.holder.pid}/ns/net"
    done = subprocess.run(["nsenter", f"--net={where}", *argv], capture_output=True, text=True, check=False)
    return [row for row in json.loads(done.stdout or "[]") if row]


def state_folder(host: Host) -> Path:
    """Where the plugin keeps its files, as this process can open it."""
    identity = json.loads(host.api("GET", f"/plugins/{DRIVER}/json"))["Id"]
    return host.path(f"/var/lib/docker/plugins/{identity}/propagated-mount")


def state(host: Host) -> Mapping[str, Any]:
    """What the plugin has on disk."""
    return dict(json.loads((state_folder(host) / "state.json").read_text())["state"])


# --- the store ----------------------------------------------------------------------------------------------


def store_host(lab: Lab) -> Host | None:
    """The host that runs the Swarm's store."""
    return next((host for host in lab.hosts if processes(host, "etcd --name=leader")), None)


def store_of(lab: Lab) -> Mapping[str, Mapping[str, str]] | None:
    """All records in the Swarm's store by key, asked with its host's own certificate."""
    host = store_host(lab)
    if host is None:
        return None
    argv = [sys.executable, "-c", DUMP_STORE, "/var/lib/docker/swarm/certificates", host.address]
    done = host.run(argv, check=False)
    if done.returncode != 0:
        return None
    rows = json.loads(done.stdout).get("kvs", [])
    return {base64.b64decode(row["key"]).decode(): json.loads(base64.b64decode(row["value"])) for row in rows}


def processes(host: Host, pattern: str) -> list[int]:
    """Process ids, in the host, of the plugin's processes whose command line has *pattern*."""
    found = []
    for entry in host.path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if pattern in line and not line.startswith(("sh -c", "setpriv")):
                found.append(int(entry.name))
    return sorted(found)


# --- what is not ours ---------------------------------------------------------------------------------------

PLANTED = (
    "ip netns add theirs",
    "ip link add br-theirs type bridge",
    "ip link add vxtheirs type vxlan id 99 dstport 4799",
    "ip link set vxtheirs netns theirs up",
    "ip -n theirs link set vxtheirs alias somebody",
    "bridge -n theirs fdb append 02:00:00:00:00:99 dev vxtheirs dst 192.0.2.99 self permanent",
    "ip -n theirs neigh add 10.99.0.9 lladdr 02:00:00:00:00:99 dev vxtheirs nud permanent",
)


def plant(host: Host) -> None:
    """Make objects that are like ours and are not, for `foreign` to look after."""
    host.run(["sh", "-ec", "\n".join(PLANTED)])


def foreign(host: Host) -> str:
    """The planted objects, with everything about them that does not change by itself."""
    links = _json(host, "", "ip", "-j", "link", "show", "type", "bridge")
    theirs = [f"{d['ifindex']} {d['ifname']} {d['address']}" for d in links if d["ifname"] == "br-theirs"]
    if not host.path("/run/netns/theirs").exists():
        return "\n".join(theirs)
    rows = _json(host, "theirs", "bridge", "-j", "fdb")
    kept = [f"{r['mac']} {r['dst']}" for r in rows if "dst" in r]
    near = [f"{r['dst']} {r['lladdr']}" for r in _json(host, "theirs", "ip", "-j", "neigh")]
    devices = [
        f"{d['ifindex']} {d['ifname']} {d['flags']}" for d in _json(host, "theirs", "ip", "-j", "link")
    ]
    return "\n".join([*theirs, *kept, *near, *devices])


def answers(host: Host) -> bool:
    """Whether the engine can be asked at present."""
    try:
        host.api("GET", "/containers/json", timeout=5)
    except (OSError, HTTPException, CommandError):
        return False
    return True
