"""A lab: several hosts with real engines, and the underlay network that joins them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from . import packages
from .busybox import busybox_tar
from .capture import Capture
from .cleanup import clean, make_folder, remove_lab
from .host import Host
from .paths import DETACHED, LABS, LOGS, PREFIX
from .spaces import CommandError, Process, Spaces, wait_for

OUTSIDE = "198.51.100.1"
"""An address "on the internet": it lives on the hub, in no network of the lab (RFC 5737)."""
OUTSIDE6 = "2001:db8:ffff::1"


HUB_SWITCHES = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    # No packet filter on the wire between hosts, whatever the machine's default is.
    "bridge/bridge-nf-call-iptables": 0,
    "bridge/bridge-nf-call-ip6tables": 0,
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lab:
    """Hosts h1, h2, … with one engine each, on one underlay; a context manager that leaves nothing behind.

    Every process of the lab dies with the process that made it, unless `detached`: then the lab stays until
    `clean()` (`python -m tests.lab down`), and `Lab.attach()` opens it again.
    """

    def __init__(
        self,
        engines: Sequence[str] = ("28.5", "28.5", "20.10"),
        mtu: int = 1500,
        ipv6: bool = False,
        detached: bool = False,
    ) -> None:
        if detached:
            # There is one detached lab at a time; a new one takes the place of the old.
            clean()
        self._begin(secrets.token_hex(2), mtu, ipv6, detached)
        clean(only_dead=True)
        packages.ensure("tools", *dict.fromkeys(engines))
        busybox_tar()
        try:
            make_folder(self.id)
            self._build_hub()
            self._add_hosts(engines)
            if detached:
                self._save()
        except BaseException:
            self.keep_logs()
            self.close()
            raise

    def _begin(self, name: str, mtu: int, ipv6: bool, detached: bool) -> None:
        self.id = name
        self.mtu = mtu
        self.ipv6 = ipv6
        self.detached = detached
        self.hosts: list[Host] = []
        self.folder = LABS / name
        self.outside = OUTSIDE
        self.outside6 = OUTSIDE6
        # Each lab has namespaces of its own, so equal networks would do; different ones read better in logs.
        network = int(name, 16) % 250 + 1
        self._prefix, self._prefix6 = f"10.77.{network}.", f"fd77:{network:x}::"
        self.gateway = f"{self._prefix}1"
        self.hub: Spaces
        self._registry_started = False

    # --- life -------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if kind is not None:
            self.keep_logs()
        if not self.detached:
            self.close()

    def close(self) -> None:
        """Take everything down: processes, links, mounts, control groups, files."""
        for spaces in [host.spaces for host in self.hosts] + ([self.hub] if hasattr(self, "hub") else []):
            spaces.close()
        remove_lab(self.id)

    def keep_logs(self) -> None:
        """After a failure the engines' logs are worth more than the space they take."""
        LOGS.mkdir(parents=True, exist_ok=True)
        for host in self.hosts:
            (LOGS / f"{host.name}.log").write_text(f"engine {host.engine}\n{host.engine_log()}")

    def _save(self) -> None:
        """Write down what another process needs to take this lab over."""
        state = {
            "id": self.id,
            "mtu": self.mtu,
            "ipv6": self.ipv6,
            "registry": self._registry_started,
            "hub": [self.hub.holder.pid, self.hub.holder.start],
            "hosts": [host.state() for host in self.hosts],
        }
        fresh = DETACHED.with_suffix(".new")
        fresh.write_text(json.dumps(state, indent=1))
        fresh.rename(DETACHED)

    @classmethod
    def attach(cls) -> Lab:
        """The detached lab that an earlier process of this checkout left running."""
        try:
            state: dict[str, Any] = json.loads(DETACHED.read_text())
        except FileNotFoundError:
            raise RuntimeError("no detached lab is up") from None
        lab = cls.__new__(cls)
        lab._begin(state["id"], state["mtu"], state["ipv6"], True)
        lab.hub = Spaces(f"{PREFIX}-{lab.id}-hub", Process(*state["hub"]))
        if not lab.hub.alive:
            raise RuntimeError("the detached lab has died; `python -m tests.lab down` removes what is left")
        lab._registry_started = state["registry"]
        for entry in state["hosts"]:
            lab.hosts.append(
                Host.from_state(
                    entry, lab.folder / entry["name"], lab._spaces_name(entry["name"]), lab.registry_address
                )
            )
        return lab

    # --- hosts and underlay -----------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name."""
        return next(host for host in self.hosts if host.name == name)

    def add_host(self, engine: str) -> Host:
        """One more host, its engine running, not yet in any swarm."""
        self._add_hosts([engine])
        if self.detached:
            self._save()
        return self.hosts[-1]

    def remove_host(self, host: Host) -> None:
        """Power off: the host and everything on it are gone at once, without a word to the others."""
        host.spaces.close()
        self.hosts.remove(host)

    def cut(self, host: Host) -> None:
        """Pull the host's cable."""
        self.hub.ip(f"link set {host.name} down")

    def heal(self, host: Host) -> None:
        """Plug the host's cable in again."""
        self.hub.ip(f"link set {host.name} up")

    def capture(self, host: Host, filter_expr: str = "") -> Capture:
        """Record packets on the host's underlay interface for the length of a `with` block."""
        return Capture(host, filter_expr)

    def _spaces_name(self, name: str) -> str:
        return f"{PREFIX}-{self.id}-{name}"

    def _build_hub(self) -> None:
        folder = self.folder / "hub"
        folder.mkdir()
        self.hub = Spaces.create(
            self._spaces_name("hub"), hostname="hub", folder=folder, detached=self.detached
        )
        for switch, value in HUB_SWITCHES.items():
            self.hub.run(
                ["sh", "-c", f"test ! -e /proc/sys/net/{switch} || echo {value} >/proc/sys/net/{switch}"]
            )
        lines = [
            "link add br0 type bridge forward_delay 0 mcast_snooping 0",
            f"link set br0 mtu {self.mtu} up",
            f"addr add {self.gateway}/24 dev br0",
            f"addr add {OUTSIDE}/32 dev lo",
        ]
        if self.ipv6:
            lines += [f"addr add {self._prefix6}1/64 dev br0 nodad", f"addr add {OUTSIDE6}/128 dev lo nodad"]
        self.hub.ip(*lines)

    def _add_hosts(self, engines: Sequence[str]) -> None:
        first = max((int(host.name[1:]) for host in self.hosts), default=0) + 1
        made = in_parallel(self._make_host, [(first + i, engine) for i, engine in enumerate(engines)])
        self.hosts.sort(key=lambda host: int(host.name[1:]))
        in_parallel(self._start_host, made)

    def _make_host(self, numbered: tuple[int, str]) -> Host:
        number, engine = numbered
        name, address = f"h{number}", f"{self._prefix}{number + 10}"
        folder = self.folder / name
        data = folder / "docker"
        data.mkdir(parents=True)
        binds = [(str(data), "/var/lib/docker")]
        spaces = Spaces.create(
            self._spaces_name(name), hostname=name, folder=folder, binds=binds, detached=self.detached
        )
        mtu, there = f"mtu {self.mtu}", f"netns {spaces.holder.pid}"
        self.hub.ip(
            f"link add {name} {mtu} type veth peer name {Host.interface} {mtu} {there}",
            f"link set {name} master br0 up",
        )
        lines = [
            f"addr add {address}/24 dev {Host.interface}",
            f"link set {Host.interface} up",
            f"route add default via {self.gateway}",
        ]
        host = Host(name, engine, address, folder, spaces, self.registry_address)
        # At once, so that a failure in another thread still closes this one.
        self.hosts.append(host)
        if self.ipv6:
            host.address6 = f"{self._prefix6}{number + 10:x}"
            lines.insert(1, f"addr add {host.address6}/64 dev {Host.interface} nodad")
            lines.append(f"route add ::/0 via {self._prefix6}1")
        spaces.ip(*lines)
        return host

    @staticmethod
    def _start_host(host: Host) -> None:
        host.start_engine()
        host.load_busybox()

    # --- swarm ------------------------------------------------------------------------------------------

    def swarm(self, managers: int = 1) -> None:
        """Make one swarm of all hosts, the first `managers` of them managers; returns when all are ready."""
        first = self.hosts[0]
        first.docker("swarm", "init", "--advertise-addr", first.address)
        for host in self.hosts[1:managers]:
            self.join(host, manager=True)
        in_parallel(self.join, self.hosts[managers:])
        self.wait_ready()

    def join(self, host: Host, manager: bool = False) -> None:
        """Let `host` join the swarm that the first host is in."""
        first = self.hosts[0]
        token = first.docker("swarm", "join-token", "-q", "manager" if manager else "worker")
        arguments = ["--advertise-addr", host.address, "--token", token, f"{first.address}:2377"]
        host.docker("swarm", "join", *arguments)

    def wait_ready(self, timeout: float = 60) -> None:
        """Until every host of the lab is a ready node of the swarm."""
        names = {host.name for host in self.hosts}

        def ready() -> bool:
            listed = self.hosts[0].docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}", check=False)
            return names <= {line.split()[0] for line in listed.splitlines() if line.endswith("Ready")}

        if not wait_for(ready, timeout, every=0.1):
            raise CommandError(
                "h1",
                ["docker", "node", "ls"],
                f"not all ready after {timeout} s",
                "",
                self.hosts[0].docker("node", "ls", check=False),
            )

    # --- registry ---------------------------------------------------------------------------------------

    @property
    def registry_address(self) -> str:
        return f"{self.gateway}:5000"

    def registry(self) -> str:
        """ "ip:port" of a real registry that all hosts reach and that their engines accept without TLS."""
        if not self._registry_started:
            folder = self.folder / "registry"
            folder.mkdir()
            config = {
                "version": 0.1,
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(folder)}},
                "http": {"addr": self.registry_address},
            }
            (folder / "config.yml").write_text(json.dumps(config))
            with open(folder / "registry.log", "a") as log:
                self.hub.popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
            url = f"http://{self.registry_address}/v2/"
            if not wait_for(
                lambda: self.hub.run(["busybox", "wget", "-q", "-O-", url], check=False).returncode == 0, 20
            ):
                raise RuntimeError(
                    f"docker-registry does not answer: {(folder / 'registry.log').read_text()}"
                )
            self._registry_started = True
            if self.detached:
                self._save()
        return self.registry_address


def in_parallel(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Do `work` on all items at once; all are finished, or failed, when this returns or raises."""
    todo = list(items)
    if not todo:
        return []
    with ThreadPoolExecutor(len(todo)) as pool:
        return list(pool.map(work, todo))
