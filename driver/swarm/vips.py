"""From the engine's lists of networks, services and tasks to what the Swarm's leader says about them. Pure.

Fields as of https://docs.docker.com/reference/api/engine/, the same from 20.10 to 29. An object without
the fields, because it is new and has not been given addresses yet, is left out until it has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import ip_interface
from typing import Any, Final, TypeAlias

from driver.wish.records import Offer, ServiceRecord
from driver.wish.values import Address, NetworkId

Object: TypeAlias = Mapping[str, Any]

_OPTIONS: Final = frozenset({"vni", "vxlan_port"})
"""What our answer to AllocateNetwork always has: they mark our networks, whatever name the plugin has."""

WANTED: Final = ("running", "complete")
"""The desired states of tasks that may run: a job's are to be complete from their beginning on."""
_ENDED: Final = frozenset({"complete", "shutdown", "failed", "rejected", "remove", "orphaned"})
"""https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/"""


def our_networks(networks: Iterable[Object]) -> frozenset[NetworkId]:
    """Return which of the Swarm's networks are ours."""
    return frozenset(
        NetworkId(str(n["Id"]))
        for n in networks
        if n.get("Id") and (n.get("Options") or {}).keys() >= _OPTIONS
    )


def offer(networks: Iterable[NetworkId], services: Iterable[Object], tasks: Iterable[Object]) -> Offer:
    """Return what to publish about *networks*: every virtual address, with the running tasks behind it.

    The engine says that a task runs once its health check, if there is one, has passed.
    """
    backends: dict[tuple[str, NetworkId], set[Address]] = defaultdict(set)
    for task in tasks:
        if _status(task) == "running" and task.get("DesiredState") in WANTED:
            for network, addresses in _attachments(task):
                backends[str(task.get("ServiceID")), network] |= addresses
    said: dict[NetworkId, set[ServiceRecord]] = {network: set() for network in networks}
    for service in services:
        for network, vip in _vips(service):
            if network in said:
                found = sorted(backends[str(service.get("ID")), network], key=int)
                said[network].add(ServiceRecord(network, vip, _name(service), tuple(found)))
    return {network: frozenset(records) for network, records in said.items()}


def is_settled(services: Iterable[Object], tasks: Iterable[Object]) -> bool:
    """Tell whether nothing is about to change: no update is in progress, and every wanted task runs.

    Of a job they may also have ended, well or not: another try is another task.
    """
    updating = (
        s for s in services if (s.get("UpdateStatus") or {}).get("State") in ("updating", "rollback_started")
    )
    starting = (task for task in tasks if not _is_at_rest(task))
    return next(updating, None) is None and next(starting, None) is None


def _is_at_rest(task: Object) -> bool:
    status = _status(task)
    return status == "running" or (task.get("DesiredState") == "complete" and status in _ENDED)


def _status(task: Object) -> str:
    return str((task.get("Status") or {}).get("State"))


def _name(service: Object) -> str:
    return str((service.get("Spec") or {}).get("Name") or service.get("ID"))


def _vips(service: Object) -> Iterable[tuple[NetworkId, Address]]:
    for entry in (service.get("Endpoint") or {}).get("VirtualIPs") or []:
        address = _address(entry.get("Addr"))
        if address is not None:
            yield NetworkId(str(entry.get("NetworkID"))), address


def _attachments(task: Object) -> Iterable[tuple[NetworkId, set[Address]]]:
    for entry in task.get("NetworksAttachments") or []:
        found = (_address(text) for text in entry.get("Addresses") or [])
        network = NetworkId(str((entry.get("Network") or {}).get("ID")))
        yield network, {address for address in found if address is not None}


def _address(text: object) -> Address | None:
    """Read "10.0.0.5/24"; IPv6 is left out: a Swarm gives none to networks of other drivers."""
    try:
        address = ip_interface(str(text)).ip
    except ValueError:
        return None
    return address if address.version == 4 else None
