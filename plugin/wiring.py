"""The composition root: which parts there are, and how they fit together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

from flask import Flask

from driver.cluster.backend import ControlPlane
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import TlsSessions
from driver.cluster.memory import MemoryControlPlane
from driver.cluster.peering import Peering
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.host import NetlinkKernel
from driver.overlay import Overlay
from driver.reconcile.networks import NetworkReconciler
from driver.reconcile.sandboxes import SandboxReconciler
from driver.swarm.census import Census
from driver.swarm.docker_api import DockerApi
from driver.swarm.etcd_process import EtcdSettings
from driver.swarm.identity import swarm_credentials
from driver.swarm.leader_etcd import LeaderEtcd
from driver.swarm.service_watch import ServiceWatch
from driver.wish.disk import WishFile
from driver.wish.values import Prefix
from driver.wish.wish import Wish
from ipam.disk import LeaseFile
from ipam.manager import AddressManager
from lib.supervised import Supervised
from plugin.app import create_app
from plugin.settings import Settings

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_SCOPE_POLL = 0.5
"""Seconds between looks whether the host has joined or left a Swarm."""


def scope_of(settings: Settings) -> str:
    """Return ``global`` in a Swarm and ``local`` outside, unless the user decided.

    The engine starts its plugins before its API is up, so it is the Swarm's folder that tells:
    docker-state.json is there while the node is, or wants to be, in a Swarm (moby daemon/cluster).
    """
    if settings.scope != "auto":
        return settings.scope
    in_swarm = settings.managed and (settings.swarm_dir / "docker-state.json").exists()
    return "global" if in_swarm else "local"


class Runtime:
    """Everything that runs behind the HTTP application of one worker process."""

    def __init__(self, settings: Settings, restart: Callable[[str], None]) -> None:
        """Load the state; *restart* ends the process with a reason, to be started anew.

        Raises driver and ipam StoreErrors when what is on disk cannot be used.
        """
        self._settings = settings
        self._restart = restart
        self._scope = scope_of(settings)
        self._netns_dir = settings.run_dir / "netns"
        self._wish = Wish(WishFile(settings.state_dir / "state.json"))
        self._networks = NetworkReconciler(
            self._wish, NetlinkKernel(self._netns_dir), shortcuts=settings.shortcut == "auto"
        )
        self._docker = DockerApi(settings.run_dir / "docker.sock")
        self._census = Census(self._wish, self._docker)
        self._sandboxes = SandboxReconciler(
            self._wish, NetlinkSandboxes(settings.host_path), wait_rows=self._networks.wait_tried
        )
        self._services = ServiceWatch(self._wish, self._docker) if self._scope == "global" else None
        self._swarm: LeaderEtcd | None = None
        self._peering = Peering(self._wish, self._control_plane())
        self._overlay = Overlay(
            self._wish,
            self._networks,
            self._peering,
            scope=self._scope,
            right_scope=lambda: scope_of(settings),
            default_port=settings.vxlan_port,
            fixed_vtep=settings.vtep is not None,
        )
        self._ipam = AddressManager(
            LeaseFile(settings.state_dir / "ipam.json"),
            routes=self._host_routes,
            in_use=self._overlay.in_use,
            networks=self._local_prefixes,
        )
        self._watcher = Supervised("membership", self._watch_scope)

    def start(self) -> Flask:
        """Start the threads and return the application."""
        log.info(
            "scope %s, state in %s, namespaces in %s", self._scope, self._settings.state_dir, self._netns_dir
        )
        self._set_vtep()
        self._networks.start()
        if self._swarm:
            self._swarm.start()
        self._peering.start()
        self._census.start()
        self._sandboxes.start()
        if self._services:
            self._services.start()
        if self._settings.scope == "auto":
            self._watcher.start(_SCOPE_POLL)
        return create_app(self._overlay, self._ipam)

    def stop(self) -> None:
        """Stop the threads; networks and containers go on. Who has left the Swarm withdraws."""
        self._watcher.stop()
        self._census.stop()
        if self._services:
            self._services.stop()
        self._sandboxes.stop()
        self._peering.stop(leave=scope_of(self._settings) != self._scope)
        if self._swarm:
            self._swarm.stop()
        self._networks.stop()

    def _control_plane(self) -> ControlPlane:
        """Choose the store: the user's, in a Swarm the leader's, else none beyond this process."""
        settings, node = self._settings, self._wish.state.host.id
        if settings.store:
            return EtcdControlPlane(node, lambda: settings.store)
        if self._scope == "local":
            return MemoryControlPlane(node)
        credentials = swarm_credentials(settings.swarm_dir / "certificates")
        etcd = EtcdSettings("etcd", settings.state_dir / "etcd", settings.store_port, credentials)
        self._swarm = LeaderEtcd(self._docker, etcd)
        return EtcdControlPlane(node, self._swarm.endpoints, TlsSessions(credentials))

    def _set_vtep(self) -> None:
        """Take the VTEP address that the user gave; without Swarm, that of the default route."""
        vtep = self._settings.vtep
        if vtep is None and self._scope == "local":
            vtep = self._ask_kernel(NetlinkKernel.default_source)
        if vtep is not None:
            self._wish.change(lambda state: replace(state, host=replace(state.host, vtep=vtep)))

    def _watch_scope(self) -> float:
        """The engine asks for our scope once; when the right answer changes, it has to ask again."""
        if scope_of(self._settings) == self._scope:
            return _SCOPE_POLL
        self._restart(f"the host is {'no longer' if self._scope == 'global' else 'now'} in a Swarm")
        self._watcher.end()
        return 0.0

    def _host_routes(self) -> Collection[Prefix]:
        return self._ask_kernel(NetlinkKernel.routes)

    def _local_prefixes(self) -> Collection[Prefix]:
        if self._scope == "global":
            return ()
        networks = self._wish.state.networks.values()
        return [subnet.prefix for n in networks for segment in n.segments for subnet in segment.subnets]

    def _ask_kernel(self, question: Callable[[NetlinkKernel], _T]) -> _T:
        """Ask with a socket of our own: the engine's belongs to its thread."""
        kernel = NetlinkKernel(self._netns_dir)
        try:
            return question(kernel)
        finally:
            kernel.close()
