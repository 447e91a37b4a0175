"""A node of a Swarm: the leader decides and runs the store, unless the user names one."""

from __future__ import annotations

from collections.abc import Callable

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import TlsSessions
from driver.cluster.path import PathMtu
from driver.mode import InSwarm
from driver.swarm.etcd_process import EtcdSettings
from driver.swarm.identity import node_id, swarm_credentials
from driver.swarm.leader_etcd import LeaderEtcd
from driver.swarm.remotes import known_managers
from driver.swarm.service_watch import ServiceWatch
from plugin.settings import Settings
from plugin.wiring.runtime import Part, Runtime, docker_api, load_wish, lower_mtus, set_vtep, users_store


def wire(settings: Settings, restart: Callable[[str], None]) -> Runtime:
    """Make the runtime. Raises driver and ipam errors when the disk cannot be used."""
    wish, docker = load_wish(settings), docker_api(settings)
    node, certificates = wish.state.host.id, settings.swarm_dir / "certificates"
    member = node_id(certificates)
    # A Swarm that was left and made anew within a moment is another one.
    mode = InSwarm(lambda: settings.in_swarm and node_id(certificates) in ("", member))
    set_vtep(wish, settings.vtep)
    control, store = users_store(settings, node), list[Part]()
    if control is None:
        credentials = swarm_credentials(certificates)
        etcd = EtcdSettings("etcd", settings.state_dir / "etcd", settings.store_port, credentials)
        leader = LeaderEtcd(docker, etcd, noted=lambda: known_managers(settings.swarm_dir))
        control, store = EtcdControlPlane(node, leader.endpoints, TlsSessions(credentials)), [leader]
    return Runtime(
        settings,
        restart,
        wish=wish,
        docker=docker,
        mode=mode,
        control=control,
        store=store,
        services=[
            PathMtu(wish, lower=lambda state: lower_mtus(state, settings.host_path)),
            ServiceWatch(wish, docker, note_version=mode.note_engine),
        ],
    )
