"""A kernel in memory, by the rules of the real one (tests/kernel/test_contract.py holds it to them).

It is a data plane, not a recorder of calls: ask it where a frame goes (`reaches`, `answers`).
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Row,
    Shortcut,
    Vxlan,
)
from driver.kernel.objects import KernelObject, KernelState, Key, Kind
from driver.kernel.ops import Announcement, Op, Set, subject
from driver.wish.errors import KernelError
from driver.wish.model import Underlay
from driver.wish.values import HOST, Address, Mac, Vni

_T = TypeVar("_T", Namespace, Bridge, BridgeAddress, Vxlan, Port, FdbEntry, Neighbour, Shortcut)

_P = ParamSpec("_P")
_R = TypeVar("_R")

LONGEST_NAME = 15
MTUS = range(68, 65536)


def _in_one_piece(
    method: Callable[Concatenate[FakeKernel, _P], _R],
) -> Callable[Concatenate[FakeKernel, _P], _R]:
    """Let no other thread see, or change, half of what *method* does."""

    @wraps(method)
    def locked(kernel: FakeKernel, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with kernel._lock:
            return method(kernel, *args, **kwargs)

    return locked


class FakeKernel:
    """The Kernel protocol on a dict.

    Tests may look at everything: *objects* is what is there (lose and spoil play the careless
    hand), *host_devices* what the host's own namespace holds (a container end, by
    name, until the engine takes it), *busy* the VNIs that strangers have, *applied* the
    operations so far.
    """

    def __init__(self) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self.host_devices: dict[str, str] = {}
        """Device name -> alias; one without our alias is a stranger's."""
        self.busy: set[tuple[Vni, int]] = set()
        self.applied: list[Op] = []
        self.underlays: dict[Address | None, Underlay] = {}
        """Use move_underlay for a change that the driver is to hear of."""
        self.heard: dict[str, dict[Address, Mac]] = {}
        """What containers were told of, by port."""
        self.closed = False
        self.shortcuts = True
        self._failures: list[tuple[Kind, int]] = []
        self._read_failures: list[int] = []
        self._news: set[str] = set()
        self._wake: int | None = None
        self._lock = threading.RLock()
        self._goes_on = threading.Event()
        self._goes_on.set()

    # What the driver sees.

    def has_shortcuts(self) -> bool:
        return self.shortcuts

    @_in_one_piece
    def namespaces(self) -> Collection[str]:
        return sorted(key.place for key in self.objects if key.kind == Namespace.kind)

    @_in_one_piece
    def read_place(self, namespace: str, rows: Collection[Row] | None = None) -> KernelState:
        if self._read_failures:
            number = self._read_failures.pop(0)
            raise KernelError(f"cannot read {namespace}: {os.strerror(number)}", number)
        if rows is None:
            self._news.discard(namespace)  # first, as the real one: what changes from here on is news
        found = {key: obj for key, obj in self.objects.copy().items() if key.place == namespace}
        if rows is None:
            return found
        keys = {row.key for row in rows}
        return {key: obj for key, obj in found.items() if key in keys or not isinstance(obj, Row)}

    @_in_one_piece
    def container_ends(self) -> Collection[str]:
        return [name for name, alias in self.host_devices.items() if alias.startswith("pyoverlay ")]

    def apply(self, ops: Sequence[Op]) -> Mapping[Key, KernelError]:
        failures: dict[Key, KernelError] = {}
        for op in ops:
            try:
                self._apply(op)
            except KernelError as failure:
                failures[subject(op).key] = failure
        return failures

    @_in_one_piece
    def _apply(self, op: Op) -> None:
        self.applied.append(op)
        self._fail_if_asked(subject(op))
        if isinstance(op, Set):
            self._rename(op)
            self._set(op.want)
        else:
            self._delete(op.have.key)

    @_in_one_piece
    def announce(self, what: Announcement) -> None:
        for port in self._all(Port, what.namespace):
            if port.bridge == what.bridge and port.name in what.ports:
                self.heard.setdefault(port.name, {}).update({one.address: one.mac for one in what.owners})

    def underlay(self, vtep: Address | None) -> Underlay | None:
        return self.underlays.get(vtep)

    def await_news(self, timeout: float, wake: int) -> Collection[str]:
        self._wake = wake
        if not self._news:  # what comes from here on writes to *wake*
            select.select([wake], [], [], timeout)
        self._goes_on.wait()
        return self._take_news()

    @_in_one_piece
    def _take_news(self) -> Collection[str]:
        self._wake = None
        told, self._news = self._news, set()
        return told

    def close(self) -> None:
        self.closed = True

    # What tests arrange.

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let who waits for news stand still, and then meet all of it at once."""
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    @_in_one_piece
    def fail_next(self, kind: Kind, number: int, times: int = 1) -> None:
        """Refuse the next *times* operations on objects of *kind* with errno *number*."""
        self._failures += [(kind, number)] * times

    @_in_one_piece
    def fail_next_read(self, number: int, times: int = 1) -> None:
        """Refuse the next *times* reads."""
        self._read_failures += [number] * times

    @_in_one_piece
    def heal(self) -> None:
        """Forget the failures asked for."""
        self._failures.clear()
        self._read_failures.clear()

    @_in_one_piece
    def lose(self, key: Key) -> None:
        """Remove an object, and what goes with it, behind the driver's back."""
        self._delete(key)
        self._tell(key.place)

    @_in_one_piece
    def spoil(self, obj: KernelObject) -> None:
        """Add or change an object behind the driver's back."""
        self.objects[obj.key] = obj
        self._tell(obj.key.place)

    @_in_one_piece
    def move_underlay(self, vtep: Address | None, underlay: Underlay | None) -> None:
        """Change the device of an outer address, or take the address away."""
        if underlay is None:
            self.underlays.pop(vtep, None)
        else:
            self.underlays[vtep] = underlay
        self._tell(HOST)

    @_in_one_piece
    def take(self, device: str) -> str:
        """Move a container end out of the host's namespace, as the engine does; return its alias."""
        return self.host_devices.pop(device)

    # What tests ask.

    @_in_one_piece
    def all_objects(self) -> KernelState:
        """What is there."""
        return dict(self.objects)

    @_in_one_piece
    def of(self, namespace: str, kind: Kind) -> list[KernelObject]:
        """All objects of one kind, in order of their keys."""
        return [obj for key, obj in sorted(self.objects.items()) if key[:2] == (kind, namespace)]

    @_in_one_piece
    def reaches(self, namespace: str, bridge: str, mac: Mac) -> frozenset[str | Address]:
        """Where a frame to *mac* on *bridge* comes out: container ends by name, other hosts by VTEP.

        An unknown, broadcast (FLOOD_MAC stands for it too) or multicast address is flooded.
        """
        ports = [p for p in self._all(Port, namespace) if p.bridge == bridge]
        here = [p.peer for p in ports if p.peer_mac == mac]
        if here:
            return frozenset(here)
        tunnels = {v.name for v in self._all(Vxlan, namespace) if v.bridge == bridge}
        rows = [row for row in self._all(FdbEntry, namespace) if row.device in tunnels]
        exact = [row.vtep for row in rows if row.mac == mac != FLOOD_MAC]
        if exact:
            return frozenset(exact)
        return frozenset([*(p.peer for p in ports), *(row.vtep for row in rows if row.mac == FLOOD_MAC)])

    @_in_one_piece
    def answers(self, namespace: str, bridge: str, address: Address) -> Mac | None:
        """The MAC that this host answers an ARP or ND question for *address* on *bridge* with."""
        for own in self._all(BridgeAddress, namespace):
            if own.device == bridge and own.interface.ip == address:
                above = self.objects[Key(Bridge.kind, namespace, bridge)]
                return above.mac if isinstance(above, Bridge) else None
        tunnels = {v.name for v in self._all(Vxlan, namespace) if v.bridge == bridge}
        rows = (n for n in self._all(Neighbour, namespace) if n.device in tunnels and n.address == address)
        return next((row.mac for row in rows), None)

    # The rules.

    def _set(self, want: KernelObject) -> None:
        above = want.parent
        if above and above not in self.objects:
            raise _refused(want, errno.ENODEV)
        match want:
            case Bridge():
                _check_device(want.name, want.mtu, want)
            case Vxlan():
                self._set_vxlan(want)
            case Port():
                self._set_port(want)
            case FdbEntry():
                tunnel = self.objects[Key(Vxlan.kind, want.namespace, want.device)]
                if isinstance(tunnel, Vxlan) and _family(tunnel.local) != want.vtep.version:
                    raise _refused(want, errno.EAFNOSUPPORT)
            case Shortcut() if Key(Port.kind, want.namespace, want.port) not in self.objects:
                raise _refused(want, errno.ENODEV)
        self.objects[want.key] = want

    def _rename(self, op: Set) -> None:
        if isinstance(op.have, Port) and isinstance(op.want, Port) and op.have.name != op.want.name:
            port = self.objects.pop(op.have.key)
            self.objects[op.want.key] = port

    def _set_vxlan(self, want: Vxlan) -> None:
        _check_device(want.name, want.mtu, want)
        self._check_bridge(want, want.bridge)
        have = self.objects.get(want.key)
        if isinstance(have, Vxlan) and _fixed(have) != _fixed(want):
            self._delete(have.key)  # and its rows
        others = {(v.vni, v.port) for v in self._all(Vxlan) if v.key != want.key}
        if (want.vni, want.port) in others | self.busy:
            raise _refused(want, errno.EEXIST)

    def _set_port(self, want: Port) -> None:
        _check_device(want.name, want.mtu, want)
        self._check_bridge(want, want.bridge)
        have = self.objects.get(want.key)
        if have is not None:
            return
        if not want.create:
            raise _refused(want, errno.ENODEV)
        _check_device(want.peer, want.peer_mtu, want)
        if not self.host_devices.get(want.peer, want.alias).startswith("pyoverlay "):
            raise _refused(want, errno.EEXIST)
        for port in [p for p in self._all(Port) if p.peer == want.peer and want.peer in self.host_devices]:
            self._delete(port.key)  # a stale pair: its other end goes with it
        self.host_devices[want.peer] = want.alias

    def _check_bridge(self, want: KernelObject, bridge: str) -> None:
        if Key(Bridge.kind, want.key.place, bridge) not in self.objects:
            raise _refused(want, errno.ENODEV)

    def _delete(self, key: Key) -> None:
        gone = self.objects.pop(key, None)
        if gone is None:
            return
        if isinstance(gone, Port) and self.host_devices.get(gone.peer) == gone.alias:
            del self.host_devices[gone.peer]
        if isinstance(gone, Port):
            for shortcut in [w for w in self._all(Shortcut, gone.namespace) if w.port == gone.name]:
                self.objects[shortcut.key] = replace(shortcut, port="")
        if isinstance(gone, Bridge):
            for obj in list(self.objects.values()):
                if isinstance(obj, Port | Vxlan) and (obj.namespace, obj.bridge) == gone.key[1:3]:
                    self.objects[obj.key] = replace(obj, bridge="")
        for child in [obj.key for obj in self.objects.values() if obj.parent == key]:
            self._delete(child)

    def _tell(self, namespace: str) -> None:
        self._news.add(namespace)
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)

    def _fail_if_asked(self, obj: KernelObject) -> None:
        for number, (kind, reason) in enumerate(self._failures):
            if kind == obj.key.kind:
                del self._failures[number]
                raise _refused(obj, reason)

    def _all(self, kind: type[_T], namespace: str = "") -> Iterable[_T]:
        return [o for o in self.objects.values() if isinstance(o, kind) and namespace in ("", o.key.place)]


def present(*objects: KernelObject) -> FakeKernel:
    """Build a kernel that holds *objects* already, as after a restart of the driver."""
    kernel = FakeKernel()
    kernel.apply([Set(obj) for obj in sorted(objects, key=lambda obj: obj.key)])
    kernel.applied.clear()
    return kernel


def _fixed(vxlan: Vxlan) -> tuple[Vni, int, int]:
    return (vxlan.vni, vxlan.port, _family(vxlan.local))


def _family(local: Address | None) -> int:
    return local.version if local else 4


def _check_device(name: str, mtu: int, obj: KernelObject) -> None:
    if not 0 < len(name) <= LONGEST_NAME:
        raise _refused(obj, errno.ERANGE)
    if mtu not in MTUS:
        raise _refused(obj, errno.EINVAL)


def _refused(obj: KernelObject, number: int) -> KernelError:
    return KernelError(f"cannot set {obj.key}: {os.strerror(number)}", number)
