"""The tunnel device of one segment."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from driver.kernel.kinds.bridge import Bridge
from driver.kernel.kinds.devices import Plugged, channel_for, existing
from driver.kernel.look import Look
from driver.kernel.netlink import links, messages
from driver.kernel.netlink.links import Link
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.spaces import Spaces
from driver.wish.errors import KernelError
from driver.wish.values import HOST, TUNNEL_MTU, Address, Vni


@dataclass(frozen=True, slots=True)
class Vxlan(Plugged):
    """The tunnel device of one segment: nolearning, ARP/ND proxy, a port of *bridge*, up.

    *local* is the outer source address; None, or :: over IPv6, when the route of each packet decides. The
    wish never has another *mtu*; the kernel may, after a careless change or a former version of ours.
    """

    kind: ClassVar = Kind(30, "VXLAN device")
    module: ClassVar = "vxlan"
    link_kind: ClassVar = "vxlan"
    is_shared: ClassVar = True

    namespace: str
    name: str
    vni: Vni
    port: int
    local: Address | None
    bridge: str
    alias: str
    mtu: int = TUNNEL_MTU
    sound: bool = True

    @property
    def needs(self) -> Collection[Key]:
        """Its bridge: a recreated one has no ports."""
        return (Key(Bridge.kind, self.namespace, self.bridge),)

    @property
    def description(self) -> str:
        """Its name, and what identifies it on the wire."""
        return f"VXLAN device {self.name} (VNI {self.vni}, UDP port {self.port}) in {self.namespace}"

    def hint(self, number: int) -> str:
        """Tell who may hold the UDP port."""
        if number == errno.EADDRINUSE:
            return (
                f"UDP port {self.port} is held by another program, or by a VXLAN device with other settings: "
                "see ss -lun, or choose another port with -o vxlan_port=…"
            )
        return ""

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the VXLAN devices that bear our mark."""
        for link in look.ours(cls.link_kind):
            sound = link.up and link.plain and links.tunnel_is_sound(link) and not links.learns(link)
            bridge = look.name_of(link.master)
            yield cls(
                *(look.place, link.name, link.vni, link.udp_port, link.local, bridge, link.alias),
                mtu=link.mtu,
                sound=sound,
            )

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Make it, change it in place, or recreate it.

        VNI, port, address family and the fixed flags cannot be changed: the device is deleted and
        recreated, and has lost its rows then. Its local address is changed in place.
        """
        channel = channel_for(self, spaces)
        bridge = existing(channel, self, self.bridge)
        found = self.same_kind(channel)
        if found and not self._can_become(found):
            channel.do(messages.deleted(found.index))
            found = None
        if found is None:
            self._create(spaces)
            found = existing(channel, self, self.name)
        elif found.local != self.local or links.learns(found):
            channel.do(messages.moved(found.index, self.local))
        self.settle(channel, found, bridge.index)

    def _can_become(self, found: Link) -> bool:
        same = (found.vni, found.udp_port) == (self.vni, self.port) and links.tunnel_is_sound(found)
        return same and messages.version(found.local) == messages.version(self.local)

    def _create(self, spaces: Spaces) -> None:
        """Make it through the host's socket, directly in the namespace.

        Its outer packets leave from where it was made, and no temporary name ever appears on the host.
        """
        with spaces.pinned(self.namespace) as descriptor:
            try:
                spaces.host.do(messages.new_vxlan(self.name, self.vni, self.port, self.local, descriptor))
            except OSError as failure:
                if failure.errno == errno.EEXIST:  # not the name, which was seen to be free
                    raise self._taken(self._holder(spaces)) from failure
                raise

    def _holder(self, spaces: Spaces) -> str:
        """Name the device of this host that has the VNI; empty when we cannot see it."""
        for place in (HOST, *spaces.names()):
            with contextlib.suppress(OSError):
                channel = spaces.channel(place)
                for found in links.links(channel).values() if channel else ():
                    if found.kind == "vxlan" and (found.vni, found.udp_port) == (self.vni, self.port):
                        where = "the host" if place is HOST else place
                        return f"the VXLAN device {found.name} in {where}"
        return ""

    def _taken(self, holder: str) -> KernelError:
        unseen = "a VXLAN device that cannot be seen from here (in another namespace, or being deleted)"
        return KernelError(
            f"VNI {self.vni} on UDP port {self.port} is already used on this host by {holder or unseen}; "
            "remove that device, or choose another VNI with -o vni=… or another port with -o vxlan_port=…",
            errno.EEXIST,
        )
