"""The bridge end of a container's veth pair."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from driver.kernel.kinds.bridge import Bridge
from driver.kernel.kinds.devices import Plugged, channel_for, existing
from driver.kernel.look import Look
from driver.kernel.netlink import links, messages, rows
from driver.kernel.netlink.socket import Channel
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.refusal import absent, foreign
from driver.kernel.spaces import Spaces
from driver.wish.values import TUNNEL_MTU, Mac


@dataclass(frozen=True, slots=True)
class Port(Plugged):
    """The bridge end of a container's veth pair, in the network's namespace.

    The container end, *peer*, is made beside it in the host's namespace with *peer_mac* and
    *peer_mtu*, for the engine to move. After that the kernel no longer shows it to us, so these
    and *create* do not take part in comparisons. *create* is false once the engine has the
    container end: a port that is gone then is not recreated.

    The alias names endpoint and addresses for people, and tells us whose a renamed port is.
    """

    kind: ClassVar = Kind(40, "port")
    module: ClassVar = "veth"
    link_kind: ClassVar = "veth"

    namespace: str
    name: str
    bridge: str
    alias: str
    peer: str = field(default="", compare=False)
    peer_mac: Mac = field(default=Mac(""), compare=False)
    peer_mtu: int = field(default=0, compare=False)
    create: bool = field(default=True, compare=False)
    mtu: int = TUNNEL_MTU
    """As a VXLAN device's."""
    sound: bool = True

    @property
    def needs(self) -> Collection[Key]:
        """Its bridge: a recreated one has no ports."""
        return (Key(Bridge.kind, self.namespace, self.bridge),)

    @property
    def mark(self) -> str:
        """The alias tells whose it is, whatever its name."""
        return self.alias

    @property
    def is_awaited(self) -> bool:
        """A Join waits for it as long as the engine does not have the container end."""
        return self.create

    @property
    def can_be_made(self) -> bool:
        """Not once the engine has the container end."""
        return self.create

    @property
    def description(self) -> str:
        """Its name, and that of its other end."""
        return f"veth {self.name} (container end {self.peer or 'elsewhere'}) in {self.namespace}"

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the veth ends that bear our mark."""
        for link in look.ours(cls.link_kind):
            sound = link.up and link.plain
            bridge = look.name_of(link.master)
            yield cls(look.place, link.name, bridge, link.alias, mtu=link.mtu, sound=sound)

    def set(self, spaces: Spaces, have: KernelObject | None) -> None:
        """Make the pair, or bring this end back to what it must be, and to its name."""
        channel = channel_for(self, spaces)
        if isinstance(have, Port) and have.name != self.name:
            links.rename(channel, have.name, self.name)
        bridge = existing(channel, self, self.bridge)
        found = self.same_kind(channel)
        if found and not found.ours and self.create:
            # Nobody knows where its other end is, which is removed with it.
            channel.do(messages.deleted(found.index))
            found = None
        if found is None:
            if not self.create:
                raise absent(self, f"the veth {self.name}, whose container end the engine has,")
            self._create_pair(channel, spaces, bridge.index)
            found = existing(channel, self, self.name)
        peer = links.link(spaces.host, self.peer)
        if peer and peer.kind == self.link_kind and not peer.alias:
            spaces.host.do(links.signature(self.peer, self.alias))
        self.settle(channel, found, bridge.index)

    def _create_pair(self, channel: Channel, spaces: Spaces, bridge: int) -> None:
        """Make way first: a container end left over from an interrupted Join still has the name."""
        stale = links.link(spaces.host, self.peer)
        if stale and not stale.ours:
            raise foreign(self, stale.name, stale.kind, "the host")
        if stale:
            spaces.host.do(messages.deleted(stale.index))
        end = messages.ContainerEnd(self.peer, self.peer_mac, self.peer_mtu, spaces.home)
        pair = messages.new_pair(self.name, self.mtu, end)
        # In one system call: if we are killed, no pair is left that nobody can recognise as ours.
        channel.do(pair, links.signature(self.name, self.alias))
        # What the bridge has learnt about the MAC's last host would stay until this container sends.
        channel.attempt([rows.forgotten(tunnel, self.peer_mac) for tunnel in links.tunnels(channel, bridge)])
