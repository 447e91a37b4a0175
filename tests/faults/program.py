"""The whole program but its process, on the fake kernel or a real one, spoken to over the HTTP edge."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

from flask.testing import FlaskClient

from driver.cluster.backend import ControlPlane
from driver.cluster.memory import MemoryControlPlane, MemoryStore
from driver.cluster.peering import Peering
from driver.kernel import Kernel
from driver.kernel.host import NetlinkKernel
from driver.kernel.names import namespace_name
from driver.kernel.objects import KernelState
from driver.mode import Alone
from driver.overlay import Overlay
from driver.reconcile.desired import desired
from driver.reconcile.networks import NetworkReconciler
from driver.wish.model import Host as HostRecord
from driver.wish.model import Underlay
from driver.wish.state import State
from driver.wish.values import NetworkId, NodeId
from driver.wish.wish import Wish
from ipam.disk import LeaseFile
from ipam.manager import AddressManager
from lib.committed import Disk
from plugin.app import create_app
from tests.fakes.disk import MemoryDisk
from tests.fakes.kernel import FakeKernel
from tests.kernel.hosts import Host

VTEP = ip_address("192.0.2.1")
UNDERLAY = Underlay("eth0", 1500)


class Ground(Protocol):
    """A kernel, and what a person would see of it."""

    kernel: Kernel

    def read_place(self, namespace: str) -> KernelState:
        """Read a namespace from another thread than the engine's."""

    def leftovers(self) -> list[str]:
        """Names of all devices on the host that are not the underlay."""

    def close(self) -> None: ...


class FakeGround:
    def __init__(self) -> None:
        self.fake = FakeKernel()
        self.fake.underlays = {VTEP: UNDERLAY}
        self.kernel: Kernel = self.fake

    def read_place(self, namespace: str) -> KernelState:
        return {key: obj for key, obj in self.fake.all_objects().items() if key.place == namespace}

    def leftovers(self) -> list[str]:
        return sorted(self.fake.host_devices)

    def close(self) -> None:
        return


class RealGround:
    def __init__(self, folder: Path) -> None:
        self.host = Host(folder / "netns")
        self.host.run("ip link add eth0 type bridge && ip link set eth0 up")
        self.host.run(f"ip address add {VTEP}/24 dev eth0")
        self.kernel: Kernel = self.host.kernel

    def read_place(self, namespace: str) -> KernelState:
        kernel = self.host.inside(lambda: NetlinkKernel(self.host.directory))
        try:
            return kernel.read_place(namespace)
        finally:
            kernel.close()  # an open socket would keep the namespace

    def leftovers(self) -> list[str]:
        devices = {link["ifname"] for link in self.host.json("ip -j link")} - {"lo", "eth0"}
        pins = self.host.directory.iterdir() if self.host.directory.exists() else ()
        return sorted([*devices, *(pin.name for pin in pins)])

    def close(self) -> None:
        self.host.close()


class Program:
    """Everything behind the socket, on the disk and the control plane that a test wants."""

    def __init__(
        self,
        folder: Path,
        ground: Ground,
        *,
        disk: Disk[State] | None = None,
        control: ControlPlane | None = None,
    ) -> None:
        self.ground = ground
        self.cluster = MemoryStore()
        self.wish = Wish(disk or MemoryDisk(State(HostRecord(NodeId("node"), VTEP))))
        self.reconciler = NetworkReconciler(self.wish, ground.kernel)
        control = control or MemoryControlPlane(NodeId("node"), self.cluster)
        self.peering = Peering(self.wish, control)
        self.overlay = Overlay(self.wish, self.reconciler, self.peering, Alone())
        self.ipam = AddressManager(LeaseFile(folder / "ipam.json"), tuple, self.overlay.in_use)
        self.reconciler.start()
        self.peering.start()
        self.app = create_app(self.overlay, self.ipam)
        self.answers: list[tuple[str, int, str]] = []
        self._clients = threading.local()

    def stop(self) -> None:
        self.peering.stop(leave=True)
        self.reconciler.stop()

    def call(self, method: str, body: Any, *, empty: bool = False) -> tuple[int, str]:
        """Call as the engine does, from any thread; *empty* as in its retries."""
        client: FlaskClient = getattr(self._clients, "client", None) or self.app.test_client()
        self._clients.client = client
        answer = client.post(f"/{method}", **({"data": b""} if empty else {"json": body}))
        self.answers.append((method, answer.status_code, answer.text))
        return answer.status_code, answer.text

    def must(self, method: str, body: Any) -> str:
        status, text = self.call(method, body)
        assert status == 200, f"{method}: {status} {text}"
        return text

    def quiet(self) -> None:
        """Wait until kernel and store have all that was said."""
        state, revision = self.wish.snapshot()
        for network in state.networks:
            self.reconciler.wait_applied(network, revision, 30)
        assert self.peering.wait_published(10)

    def kernel_and_wish(self, networks: Sequence[str]) -> tuple[KernelState, KernelState]:
        """What is there for *networks* and what should be."""
        names = [namespace_name(NetworkId(network)) for network in networks]
        have = {k: o for name in names for k, o in self.ground.read_place(name).items()}
        state, shortcuts = self.wish.state, self.reconciler.shortcuts
        wishes = [desired(state, NetworkId(n), UNDERLAY, shortcuts=shortcuts) for n in networks]
        return have, {k: o for wish in wishes for k, o in wish.items()}
