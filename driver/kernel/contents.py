"""All that is ours in one namespace: devices, addresses, rows and shortcuts together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from driver.kernel.netlink import links, rows
from driver.kernel.netlink.links import Link
from driver.kernel.netlink.socket import Channel
from driver.kernel.objects import WRONG_MTU, Bridge, BridgeAddress, KernelObject, Row, Vxlan
from driver.kernel.shortcuts import filters


def contents(
    channel: Channel, namespace: str, found: Mapping[int, Link], wanted: Collection[Row] | None
) -> Iterator[KernelObject]:
    """Yield what is ours among the devices *found* in *namespace* and on them; raise OSError.

    Of the rows only those at the places of *wanted*, if that is given.
    """
    devices = {index: links.device(namespace, link, found) for index, link in found.items()}
    bridges = {index: device for index, device in devices.items() if isinstance(device, Bridge)}
    assigned = links.addresses(channel) if bridges else []
    for index, device in devices.items():
        if isinstance(device, Bridge) and links.cannot_resolve(index, assigned):
            yield replace(device, mtu=WRONG_MTU)
        elif device:
            yield device
    for address in assigned:
        if address.index in bridges and address.is_global:
            yield BridgeAddress(namespace, bridges[address.index].name, address.interface)
    vxlans = {index: device.name for index, device in devices.items() if isinstance(device, Vxlan)}
    if wanted is None:
        yield from rows.dump_rows(channel, namespace, vxlans)
    else:
        yield from rows.find_rows(channel, namespace, vxlans, wanted)
    for index in vxlans:
        yield from filters.read_shortcuts(channel, namespace, found[index], found)
