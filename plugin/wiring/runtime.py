"""What runs in either mode, and how it starts and stops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from flask import Flask

from driver.cluster.backend import ControlPlane
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.peering import Peering
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.container_links import lower_mtu
from driver.kernel.host import NetlinkKernel
from driver.kernel.netlink import routes
from driver.mode import Mode
from driver.overlay import Overlay
from driver.reconcile.container_mtus import limits
from driver.reconcile.networks import NetworkReconciler
from driver.reconcile.sandboxes import SandboxReconciler
from driver.swarm.census import Census
from driver.swarm.docker_api import DockerApi
from driver.swarm.identity import node_id
from driver.swarm.recovery import LostPool, Recovery
from driver.wish.disk import WishFile
from driver.wish.state import State, as_member
from driver.wish.values import VXLAN_PORT, Address, NodeId, Prefix, is_of_one_host
from driver.wish.wish import Wish
from ipam.allocator import without_swarm
from ipam.disk import LeaseFile
from ipam.errors import IpamError
from ipam.manager import AddressManager
from lib.supervised import Supervised, ThreadState
from plugin.app import create_app
from plugin.instance import plugin_id
from plugin.settings import Settings

log = logging.getLogger(__name__)

_MACHINE: Final = Path("/sys/class/dmi/id/product_uuid")
"""What tells a machine from its clones, where it has a BIOS (Linux: drivers/firmware/dmi-id.c)."""
_MODE_POLL = 0.5
"""Seconds between looks whether the host has joined or left a Swarm."""
_STOP_SECONDS = 2.5
"""For all parts together; gunicorn's arbiter has no patience for more (plugin.server: ARBITER_GRACE)."""
_MOMENT = 0.2
"""Seconds that a part has to end before the next one is told to as well."""


class Part(Protocol):
    """What runs beside the calls, in threads of its own."""

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All of them, so that their state can be read."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; called only after `start` has succeeded."""


class Runtime:
    """Everything that runs behind the HTTP application of one worker process."""

    def __init__(
        self,
        settings: Settings,
        restart: Callable[[str], None],
        *,
        wish: Wish,
        docker: DockerApi,
        mode: Mode,
        control: ControlPlane,
        store: Sequence[Part] = (),
        services: Sequence[Part] = (),
        prefixes: Callable[[], Collection[Prefix]] = tuple,
    ) -> None:
        """Make the parts; *store* and *services* are those that only one mode has.

        *restart* ends the process, with a reason, so that it is restarted. *prefixes* are this host's own,
        which no new address pool may overlap. Raises the ipam's DiskError.
        """
        netns_dir = settings.run_dir / "netns"
        self._about = f"scope {mode.scope}, state in {settings.state_dir}, namespaces in {netns_dir}"
        self.wish = wish
        self.networks = NetworkReconciler(
            wish, NetlinkKernel(netns_dir), shortcuts=settings.shortcut == "auto"
        )
        self._recovery = Recovery(
            wish,
            docker,
            lambda: self.networks.remains,
            partial(driver_name, settings, docker),
            self._restore_pool,
            over=self._recovered,
            in_swarm=mode.scope == "global",
            default_port=settings.vxlan_port or VXLAN_PORT,
        )
        self.peering = Peering(wish, control, is_incomplete=self._recovery.is_missing_containers)
        self._overlay = Overlay(
            wish,
            self.networks,
            self.peering,
            mode,
            fixed_port=settings.vxlan_port,
            fixed_vtep=settings.vtep is not None,
            await_recovery=self._recovery.wait,
        )
        self._ipam = AddressManager(
            LeaseFile(settings.state_dir / "ipam.json"),
            routes=routes.routes,
            in_use=self._overlay.in_use,
            networks=prefixes,
            await_recovery=self._recovery.wait,
        )
        self._announcing = _Announcing(self.peering, mode)
        self._parts: Sequence[Part] = [
            self.networks,
            self._recovery,
            *store,
            self._announcing,
            SandboxReconciler(wish, NetlinkSandboxes(settings.host_path), wait_rows=self.networks.wait_tried),
            *services,
            Census(wish, docker),
            *([_ModeWatch(mode, restart)] if settings.scope == "auto" else []),
        ]
        self._started: list[Part] = []

    @property
    def threads(self) -> list[ThreadState]:
        """The state of each thread."""
        return [thread.state for part in self._parts for thread in part.threads]

    def start(self) -> Flask:
        """Start the parts and return the application.

        The kernel's state is adopted before anything is announced from it.
        """
        log.info(self._about)
        for part in self._parts:
            part.start()
            self._started.append(part)
        return create_app(self._overlay, self._ipam)

    def _recovered(self) -> None:
        self.peering.publish()

    def _restore_pool(self, lost: LostPool) -> None:
        try:
            self._ipam.restore_pool(lost.prefix, lost.sub_pool, lost.gateway, lost.taken)
        except IpamError as error:
            log.warning("pool %s: its lost record cannot be written: %s", lost.prefix, error)

    def stop(self) -> None:
        """Stop what has started, in reverse; networks and containers keep working.

        So nobody changes the wish any more while its followers end, whoever has left the Swarm withdraws
        while there is a store, and the containers' tables, which wait for rows, end before the networks.

        A part that takes long, since the engine or the store does not answer, goes on ending beside the
        others. What is not done in time ends with the process.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        ending: list[threading.Thread] = []
        for part in reversed(self._started):
            thread = threading.Thread(target=_stop, args=(part,), name=type(part).__name__, daemon=True)
            if not _started(thread):
                _stop(part)
                continue
            # The store that the announcing speaks to may be the next part.
            thread.join(_STOP_SECONDS / 2 if part is self._announcing else _MOMENT)
            ending.append(thread)
        for thread in ending:
            thread.join(max(0.0, deadline - time.monotonic()))
        if late := [thread.name for thread in ending if thread.is_alive()]:
            log.warning("still busy, and ended with the process: %s", ", ".join(late))


def _started(thread: threading.Thread) -> bool:
    """Start *thread*; return False when no more can be had."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _stop(part: Part) -> None:
    try:
        part.stop()
    except Exception:  # one part's trouble keeps no other from ending
        log.exception("unexpected fault while %s ended", type(part).__name__)


class _Announcing:
    """The peering as a part: a host that has joined or left a Swarm leaves nothing in the control plane."""

    def __init__(self, peering: Peering, mode: Mode) -> None:
        self._peering = peering
        self._mode = mode

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """Those of the peering, the control plane's among them."""
        return self._peering.threads

    def start(self) -> None:
        self._peering.start()

    def stop(self) -> None:
        self._peering.stop(leave=not self._mode.lasts())


class _ModeWatch:
    """The engine asks for our scope once; when the right answer changes, it has to ask again."""

    def __init__(self, mode: Mode, restart: Callable[[str], None]) -> None:
        self._mode = mode
        self._restart = restart
        self._thread = Supervised("membership", self._look)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread,)

    def start(self) -> None:
        self._thread.start(_MODE_POLL)

    def stop(self) -> None:
        self._thread.stop()

    def _look(self) -> float:
        if self._mode.lasts():
            return _MODE_POLL
        self._restart(f"the host has {self._mode.end}")
        self._thread.end()
        return 0.0


def load_wish(settings: Settings) -> Wish:
    """Load the state, and bind it to this machine and its membership in a Swarm.

    On another machine, or in another Swarm, the host becomes another one, and leases of the former Swarm go.
    Raises driver and ipam errors when what is on disk cannot be used.
    """
    wish = Wish(WishFile(settings.state_dir / "state.json"))
    member, fresh = _membership(settings)
    former = wish.state.host
    if member and former.member not in ("", member):
        log.warning("this is not the host that has the identity %s: it gets another one", former.id)
        _forget_swarm(LeaseFile(settings.state_dir / "ipam.json"), own_prefixes(wish))
    wish.change(partial(as_member, member=member, fresh=fresh))
    return wish


def _membership(settings: Settings) -> tuple[str, NodeId]:
    """Return what this host's identity is bound to, and a new one; nothing while the Swarm has not said."""
    if settings.in_swarm:
        node = node_id(settings.swarm_dir / "certificates")
        return (f"swarm {node}" if node else "", NodeId(node))
    return this_machine(), NodeId(uuid4().hex)


def this_machine() -> str:
    """Return what a host by itself has its identity bound to."""
    try:
        return f"machine {_MACHINE.read_text().strip()}"
    except OSError:  # not every machine has one
        return "machine "


def _forget_swarm(leases: LeaseFile, own: Collection[Prefix]) -> None:
    if (state := leases.load()) is not None:
        leases.save(without_swarm(state, own))


def own_prefixes(wish: Wish) -> Collection[Prefix]:
    """Return the prefixes of the networks that this host's engine made by itself."""
    networks = (n for n in wish.state.networks.values() if is_of_one_host(n.id))
    return [subnet.prefix for n in networks for segment in n.segments for subnet in segment.subnets]


def docker_api(settings: Settings) -> DockerApi:
    """Return the engine's API, which need not be up yet."""
    plugin = plugin_id() if settings.managed else ""
    return DockerApi(settings.host_path(str(settings.docker_socket)), plugin)


def driver_name(settings: Settings, docker: DockerApi) -> str:
    """Return the name by which the engine's networks call us; raise EngineAway."""
    return docker.plugin_name(plugin_id()) if settings.managed else settings.socket.stem


def lower_mtus(state: State, path_of: Callable[[str], Path]) -> None:
    """Have running containers send no more than the underlay carries by now."""
    for sandbox, mac, mtu in limits(state):
        with suppress(OSError):  # it has ended
            if before := lower_mtu(path_of(sandbox), mac, mtu):
                log.warning("the MTU of the container with %s was lowered from %d to %d", mac, before, mtu)


def users_store(settings: Settings, node: NodeId) -> ControlPlane | None:
    """Return the control plane over the store that the user named; None without one."""
    return EtcdControlPlane(node, lambda: settings.store) if settings.store else None


def set_vtep(wish: Wish, vtep: Address | None) -> None:
    """Take an address for this host's VTEP; None leaves the one that was announced last."""
    if vtep is not None:
        wish.change(lambda state: replace(state, host=replace(state.host, vtep=vtep)))
