"""FDB and neighbour rows of VXLAN devices: where the containers of other hosts are.

Tuples, since a host may have tens of thousands of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from errno import EAFNOSUPPORT
from functools import partial
from typing import ClassVar, NamedTuple

from driver.kernel.kinds.base import SpaceObject, Together
from driver.kernel.kinds.vxlan import Vxlan
from driver.kernel.look import Look
from driver.kernel.netlink import links, rows
from driver.kernel.netlink.rows import Place
from driver.kernel.netlink.socket import Request
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.ops import Op, Set, subject
from driver.kernel.refusal import absent, failures_of
from driver.kernel.spaces import Spaces
from driver.wish.errors import KernelError
from driver.wish.values import Address, Mac

FLOOD_MAC = Mac("00:00:00:00:00:00")
"""FDB rows of this MAC are the head-end replication list: one per VTEP that has the network."""


class Row(SpaceObject):
    """A permanent row on a VXLAN device of ours."""

    __slots__ = ()

    goes_with_parent: ClassVar = True
    is_told: ClassVar = True

    namespace: str
    device: str

    @property
    def is_replication(self) -> bool:
        """Whether it is one of many for one MAC, which the kernel cannot replace."""
        return False

    @property
    def parent(self) -> Key:
        """Its VXLAN device."""
        return Key(Vxlan.kind, self.namespace, self.device)

    def together(self, *, deleting: bool) -> Together | None:
        """Return that rows of one device go together."""
        return Together(_apply, self.namespace, self.device)

    def place(self, device: int) -> Place:
        """Return where the kernel has it, on the VXLAN device with index *device*."""
        raise NotImplementedError

    def set_request(self, device: int) -> Request:
        """Return the message that sets it on the VXLAN device with index *device*."""
        raise NotImplementedError

    def delete_request(self, device: int) -> Request:
        """Return the message that deletes it there."""
        raise NotImplementedError


class _FdbFields(NamedTuple):
    namespace: str
    device: str
    mac: Mac
    vtep: Address
    sound: bool = True


class FdbEntry(_FdbFields, Row):
    """Inner MAC -> outer address: to which VTEP a frame for *mac* goes.

    Rows of FLOOD_MAC are many per device, one per VTEP; all others are one per MAC. Ours are ``self``,
    permanent, and have a destination. One with a port, a VNI or a device of its own is not sound.
    """

    __slots__ = ()

    kind: ClassVar = Kind(50, "FDB row")

    @property
    def key(self) -> Key:
        """Identity: device and MAC, and of replication rows the VTEP.

        One of these that is not sound is never wanted: it can only be deleted.
        """
        if not self.is_replication:
            return Key(self.kind, self.namespace, self.device, self.mac)
        rest = f"{self.mac} {self.vtep}" if self.sound else f"{self.mac} {self.vtep} spoilt"
        return Key(self.kind, self.namespace, self.device, rest)

    @property
    def is_replication(self) -> bool:
        """Whether it is for the frames that go to all hosts."""
        return self.mac == FLOOD_MAC

    @property
    def label(self) -> str:
        """What is sent where."""
        what = f"replication to {self.vtep}" if self.is_replication else f"FDB {self.mac}"
        return f"{what} on {self.device}"

    @property
    def description(self) -> str:
        """The row as "bridge fdb" shows it, and where."""
        return f"FDB row {self.mac} -> {self.vtep} on {self.device} in {self.namespace}"

    def hint(self, number: int) -> str:
        """Tell about address families."""
        if number == EAFNOSUPPORT:
            return "a tunnel carries one address family: all hosts need VTEP addresses of the same family"
        return ""

    def place(self, device: int) -> Place:
        """Return where the kernel has it."""
        return rows.fdb_place(device, self.mac, self.vtep if self.is_replication else None)

    def set_request(self, device: int) -> Request:
        """Return the message that sets it."""
        make = rows.new_replication if self.is_replication else rows.new_fdb
        return make(device, self.mac, self.vtep)

    def delete_request(self, device: int) -> Request:
        """Return the message that deletes it; deleting a changed replication row deletes them all."""
        return rows.deleted_fdb(device, self.mac, self.vtep if self.is_replication and self.sound else None)

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the rows of all VXLAN devices, or those at the places that are asked for."""
        for tunnel in look.ours("vxlan"):
            make = partial(cls._made, look.place, tunnel.name)
            if look.rows is None:
                yield from map(make, rows.fdb_rows(rows.dump_fdb(look.channel, tunnel.index), tunnel.index))
            else:
                wanted = [r for r in look.rows if isinstance(r, FdbEntry) and r.device == tunnel.name]
                yield from map(make, _found(look, tunnel.index, wanted))

    @classmethod
    def _made(cls, place: str, device: str, row: rows.FdbRow) -> FdbEntry:
        return cls(place, device, row.mac, row.vtep, row.plain)


class _NeighbourFields(NamedTuple):
    namespace: str
    device: str
    address: Address
    mac: Mac
    sound: bool = True


class Neighbour(_NeighbourFields, Row):
    """Inner address -> inner MAC: what the VXLAN device answers to ARP and ND. Ours are permanent."""

    __slots__ = ()

    kind: ClassVar = Kind(60, "neighbour")

    @property
    def key(self) -> Key:
        """Identity: device and address."""
        return Key(self.kind, self.namespace, self.device, self.address.packed.hex())

    @property
    def label(self) -> str:
        """Whose MAC is answered on which device."""
        return f"neighbour {self.address} on {self.device}"

    @property
    def description(self) -> str:
        """The row as "ip neighbour" shows it, and where."""
        return f"neighbour {self.address} = {self.mac} on {self.device} in {self.namespace}"

    def place(self, device: int) -> Place:
        """Return where the kernel has it."""
        return rows.neighbour_place(device, self.address)

    def set_request(self, device: int) -> Request:
        """Return the message that sets it."""
        return rows.new_neighbour(device, self.address, self.mac)

    def delete_request(self, device: int) -> Request:
        """Return the message that deletes it."""
        return rows.deleted_neighbour(device, self.address)

    @classmethod
    def read(cls, look: Look) -> Iterator[KernelObject]:
        """Yield the rows of all VXLAN devices, or those at the places that are asked for."""
        tunnels = {tunnel.index: tunnel.name for tunnel in look.ours("vxlan")}
        if not tunnels:
            return
        if look.rows is None:
            messages = rows.dump_neighbours(look.channel)
        else:
            indices = {name: index for index, name in tunnels.items()}
            wanted = [r for r in look.rows if isinstance(r, Neighbour) and r.device in indices]
            questions = [rows.asked_neighbour(indices[r.device], r.address) for r in wanted]
            messages = [answer for answer in look.channel.ask_all(questions) if answer is not None]
        for device, address, mac in rows.neighbour_rows(messages):
            if device in tunnels:
                yield cls(look.place, tunnels[device], address, mac)


def _found(look: Look, device: int, wanted: Collection[FdbEntry]) -> Iterator[rows.FdbRow]:
    """Yield what is at the places of *wanted*, whatever its value."""
    single = [row for row in wanted if not row.is_replication]
    answers = look.channel.ask_all([rows.asked_fdb(device, row.mac) for row in single])
    yield from rows.fdb_rows((answer for answer in answers if answer is not None), device)
    vteps = {row.vtep for row in wanted if row.is_replication}
    if vteps:  # they can only be listed, with all others
        likely = filter(rows.is_replication, rows.dump_fdb(look.channel, device))
        yield from (row for row in rows.fdb_rows(likely, device) if row.vtep in vteps)


def _apply(spaces: Spaces, place: str, device: str, ops: list[Op]) -> Mapping[Key, KernelError]:
    """Carry out *ops* on the rows of one device, thousands in one go."""
    channel = spaces.channel(place)
    found = links.link(channel, device) if channel else None
    if channel is None or found is None:
        what = f"VXLAN device {device} in {place}"
        return {op.want.key: absent(op.want, what) for op in ops if isinstance(op, Set)}
    return failures_of(ops, channel.attempt([_request(op, found.index) for op in ops]))


def _request(op: Op, device: int) -> Request:
    row = subject(op)
    if not isinstance(row, Row):
        raise TypeError(f"not a row: {op}")
    return row.set_request(device) if isinstance(op, Set) else row.delete_request(device)
