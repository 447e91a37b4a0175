"""A host by itself: it gives out addresses and VNIs, and shares nothing unless the user names a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from driver.cluster.memory import MemoryControlPlane
from driver.kernel.netlink import routes
from driver.mode import Alone
from plugin.settings import Settings
from plugin.wiring.runtime import Runtime, docker_api, load_wish, own_prefixes, set_vtep, users_store


def wire(settings: Settings, restart: Callable[[str], None]) -> Runtime:
    """Make the runtime. Raises driver and ipam errors when disk or kernel cannot be used."""
    wish = load_wish(settings)
    node = wish.state.host.id
    # No engine announces an address here: take the one with which the host's traffic leaves.
    set_vtep(wish, settings.vtep or routes.default_source())
    wish.change(lambda s: replace(s, host=replace(s.host, path_mtu=None)), lasting=False)  # there is no path
    return Runtime(
        settings,
        restart,
        wish=wish,
        docker=docker_api(settings),
        mode=Alone(lambda: not settings.in_swarm),
        control=users_store(settings, node) or MemoryControlPlane(node),
        prefixes=lambda: own_prefixes(wish),
    )
