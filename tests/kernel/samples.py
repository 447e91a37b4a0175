"""One small network's kernel objects, with every value settable."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Shortcut,
    Vxlan,
)
from driver.kernel.objects import KernelObject, Key, index
from driver.wish.values import Mac, Vni

NS = "pyoverlay-net1"
PEER_MAC = Mac("02:42:0a:01:00:09")


def network(
    vni: int = 1000, port: int = 4789, local: str | None = "192.0.2.1", mtu: int = 1450, ns: str = NS
) -> dict[Key, KernelObject]:
    """A bridge with both gateways, a tunnel, one container, one peer and one other host."""
    vtep = ip_address("2001:db8::2" if local and ":" in local else "192.0.2.2")
    objects: list[KernelObject] = [
        Namespace(ns),
        Bridge(ns, "br0", Mac("02:44:00:00:00:01"), mtu, "pyoverlay net1 bridge"),
        BridgeAddress(ns, "br0", ip_interface("10.1.0.1/24")),
        BridgeAddress(ns, "br0", ip_interface("fd00:1::1/64")),
        Vxlan(ns, "vx0", Vni(vni), port, ip_address(local) if local else None, "br0", "pyoverlay net1"),
        Port(ns, "p0", "br0", "pyoverlay container", "c0", Mac("02:42:0a:01:00:02"), mtu),
        Shortcut(ns, "vx0", Mac("02:42:0a:01:00:02"), "p0"),
        FdbEntry(ns, "vx0", FLOOD_MAC, vtep),
        FdbEntry(ns, "vx0", PEER_MAC, vtep),
        Neighbour(ns, "vx0", ip_address("10.1.0.9"), PEER_MAC),
        Neighbour(ns, "vx0", ip_address("fd00:1::9"), PEER_MAC),
    ]
    return index(objects)
