"""Balancers as tables of nftables (nft(8), linux/netfilter/nf_tables.h)::

    table ip pyoverlay-u4m9hzge31ts {
        map services { type ipv4_addr : verdict; elements = { 10.62.0.2 : goto s10.62.0.2, … } }
        map unserved { type ipv4_addr : verdict; elements = { 10.62.0.9 : goto refuse, … } }
        chain output {
            type nat hook output priority -99
            ip daddr vmap @services; ct direction original ip daddr vmap @unserved
        }
        chain prerouting { type nat hook prerouting priority -99; ip daddr vmap @services }
        chain forward { type filter hook forward priority 0; ct direction original ip daddr vmap @unserved }
        chain s10.62.0.2 { dnat to numgen inc mod 3 map { 0 : 10.62.0.5, 1 : 10.62.0.6, 2 : 10.62.0.7 } }
        chain refuse { meta l4proto tcp reject with tcp reset; reject }
    }

What the container sends itself begins at output; what it forwards for others (inner containers, VPN clients)
comes by prerouting. There, kernels before 5.9 cannot reject: what is unserved is refused in forward.

The messages are packed here and not by nft(8): one change must reach fifty containers within fifty
milliseconds, and starting a program in each of them takes ten times as long.
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers import rules
from driver.kernel.balancers.encoding import HEAD, IPV4, named, nest, numbered, request, type_of
from driver.kernel.balancers.rules import Rule
from driver.kernel.kinds.balancer import Services
from driver.kernel.netlink import numbers as nl
from driver.kernel.netlink.socket import Channel, Request, attribute, attributes
from driver.wish.values import Address

SERVICES, UNSERVED = "services", "unserved"
"""The maps that every table of ours has: virtual addresses with backends, and those without any."""
REFUSE: Final = "refuse"
"""The chain for connections to the latter."""


class Base(NamedTuple):
    """A chain where packets come in."""

    type: str
    hook: int
    priority: int
    rules: Sequence[Rule]

    def encode(self) -> bytes:
        """Return the attributes of the chain, beside its name."""
        place = numbered(nf.NFTA_HOOK_HOOKNUM, self.hook) + numbered(nf.NFTA_HOOK_PRIORITY, self.priority)
        rest = numbered(nf.NFTA_CHAIN_POLICY, nf.NF_ACCEPT) + named(nf.NFTA_CHAIN_TYPE, self.type)
        return nest(nf.NFTA_CHAIN_HOOK, place) + rest


_TRANSLATED, _REFUSED = rules.dispatch(SERVICES), rules.tracked(rules.dispatch(UNSERVED))
_AFTER_THEIRS: Final = nf.NF_IP_PRI_NAT_DST + 1
"""The container's own rules come first, as they do where a virtual address is on the wire."""
BASES: Final[Mapping[str, Base]] = {
    "output": Base("nat", nf.NF_INET_LOCAL_OUT, _AFTER_THEIRS, (_TRANSLATED, _REFUSED)),
    "prerouting": Base("nat", nf.NF_INET_PRE_ROUTING, _AFTER_THEIRS, (_TRANSLATED,)),
    "forward": Base("filter", nf.NF_INET_FORWARD, nf.NF_IP_PRI_FILTER, (_REFUSED,)),
}
GOTO: Final = numbered(nf.NFTA_VERDICT_CODE, nf.NFT_GOTO)

_EDGE = HEAD.pack(socket.AF_UNSPEC, 0, nf.NFNL_SUBSYS_NFTABLES)
_FEW: Final = 20
"""Backends. What is remembered of 8,192 services with so many takes 10 MB; with 3,000, it would take 1 GB."""
_PER_MESSAGE: Final = 1000
"""Elements: an attribute holds 64 KiB, and one of them takes up to 60 bytes."""


class _Types(NamedTuple):
    """What a map leads from and to."""

    key: int
    data: int
    size: int
    """The length of the data. For a verdict the kernel ignores it; nft(8) says 16."""
    orders: bytes
    """The order of bytes in keys and data: for nft(8), to show them."""


_ORDERS = struct.Struct("=BBI")
_BIG_ENDIAN_KEYS = _ORDERS.pack(nf.NFTNL_UDATA_SET_KEYBYTEORDER, 4, nf.BYTEORDER_BIG_ENDIAN)
_NATIVE_KEYS = _ORDERS.pack(nf.NFTNL_UDATA_SET_KEYBYTEORDER, 4, nf.BYTEORDER_HOST_ENDIAN)
_BIG_ENDIAN_DATA = _ORDERS.pack(nf.NFTNL_UDATA_SET_DATABYTEORDER, 4, nf.BYTEORDER_BIG_ENDIAN)
_ADDRESS_TO_VERDICT = _Types(nf.TYPE_IPADDR, nf.NFT_DATA_VERDICT, 16, _BIG_ENDIAN_KEYS)
_NUMBER_TO_ADDRESS = _Types(nf.TYPE_INTEGER, nf.TYPE_IPADDR, 4, _NATIVE_KEYS + _BIG_ENDIAN_DATA)


def generation(channel: Channel) -> int:
    """Return the number that changes with every change of any table in the namespace; raise OSError."""
    answer = channel.ask(type_of(nf.NFT_MSG_GETGEN), IPV4)
    return int.from_bytes(attributes(answer, HEAD.size)[nf.NFTA_GEN_ID], "big") if answer else 0


def commit(channel: Channel, requests: Sequence[Request], expected: int) -> int:
    """Carry out all of *requests* or none, and return the new generation.

    Raises Refused, ERESTART when *expected* is not the generation (any more).
    """
    based_on = numbered(nf.NFNL_BATCH_GENID, expected)
    begin = Request(nf.NFNL_MSG_BATCH_BEGIN, 0, _EDGE + based_on)
    channel.transact(begin, requests, Request(nf.NFNL_MSG_BATCH_END, 0, _EDGE))
    return (expected + 1) & 0xFFFFFFFF or 1  # as nf_tables_commit counts


def create(table: str, services: Services, turn: int) -> list[Request]:
    """Return the requests that create a table."""
    return [
        request(nf.NFT_MSG_NEWTABLE, nl.NLM_F_CREATE, named(nf.NFTA_TABLE_NAME, table)),
        *(
            _new_set(table, name, nf.NFT_SET_MAP, _ADDRESS_TO_VERDICT, numbered(nf.NFTA_SET_ID, number))
            for number, name in enumerate((SERVICES, UNSERVED), 1)
        ),
        *(_new_chain(table, name, base.encode()) for name, base in BASES.items()),
        _new_chain(table, REFUSE),
        *(_new_rule(table, name, rule) for name, base in BASES.items() for rule in base.rules),
        *(_new_rule(table, REFUSE, rule) for rule in rules.REFUSALS),
        *_add(table, services, turn),
    ]


@dataclass(frozen=True, slots=True)
class Difference:
    """What must be done to a sound table; the same for all containers that hold the same."""

    gone: Services
    new: Services
    """Also those that have got their first backend, or lost their last one."""
    changed: Services
    left: Mapping[Address, frozenset[Address]]
    """The backends that a virtual address no longer leads to."""

    @classmethod
    def between(cls, have: Services, want: Services) -> Difference:
        """Compare two tables."""
        stay = {vip for vip in have.keys() & want.keys() if bool(have[vip]) == bool(want[vip])}
        new = {vip: backends for vip, backends in want.items() if vip not in stay}
        changed = {vip: b for vip, b in want.items() if vip in stay and have[vip] != b}
        gone = {vip: backends for vip, backends in have.items() if vip not in stay}
        left = {vip: frozenset(have[vip]) - frozenset(want.get(vip, ())) for vip in [*gone, *changed]}
        return cls(gone, new, changed, {vip: backends for vip, backends in left.items() if backends})


def change(table: str, difference: Difference, turn: int) -> list[Request]:
    """Return the requests that apply *difference* to a sound table."""
    requests = list(_dispatched(nf.NFT_MSG_DELSETELEM, table, difference.gone))
    requests += [_chain_gone(table, vip) for vip, backends in difference.gone.items() if backends]
    requests += _add(table, difference.new, turn)
    for vip, backends in difference.changed.items():
        requests.append(request(nf.NFT_MSG_DELRULE, 0, _of_chain(table, chain_of(vip))))
        requests += _service(table, vip, _turned(backends, turn))
    return requests


def remove(table: str) -> list[Request]:
    """Return the requests that remove a table and all that is in it."""
    return [request(nf.NFT_MSG_DELTABLE, 0, named(nf.NFTA_TABLE_NAME, table))]


def _add(table: str, services: Services, turn: int) -> Iterator[Request]:
    for vip, backends in services.items():
        if backends:
            yield _new_chain(table, chain_of(vip))
            yield from _service(table, vip, _turned(backends, turn))
    yield from _dispatched(nf.NFT_MSG_NEWSETELEM, table, services)


def _turned(backends: tuple[Address, ...], turn: int) -> tuple[Address, ...]:
    start = turn % len(backends) if backends else 0
    return backends[start:] + backends[:start]


def _service(table: str, vip: Address, backends: tuple[Address, ...]) -> list[Request]:
    """Return the requests that fill a service's chain. Many containers have the same, if they are few."""
    return (_shared if len(backends) <= _FEW else _filled)(table, vip, backends)


@lru_cache(maxsize=8192)
def _shared(table: str, vip: Address, backends: tuple[Address, ...]) -> list[Request]:
    return _filled(table, vip, backends)


def _filled(table: str, vip: Address, backends: tuple[Address, ...]) -> list[Request]:
    name = _map_of(vip, backends)
    # The map's number only has to be unique within one transaction.
    number = attribute(nf.NFTA_SET_ID, vip.packed)
    size = nest(nf.NFTA_SET_DESC, numbered(nf.NFTA_SET_DESC_SIZE, len(backends)))
    flags = nf.NFT_SET_ANONYMOUS | nf.NFT_SET_CONSTANT | nf.NFT_SET_MAP
    elements = [_backend(index, backend) for index, backend in enumerate(backends)]
    return [
        _new_set(table, name, flags, _NUMBER_TO_ADDRESS, number + size),
        *_elements(nf.NFT_MSG_NEWSETELEM, table, name, elements),
        _new_rule(table, chain_of(vip), rules.translation(len(backends), name)),
    ]


def _dispatched(kind: int, table: str, services: Services) -> Iterator[Request]:
    served = [_leads(vip, chain_of(vip)) for vip, backends in services.items() if backends]
    unserved = [_leads(vip, REFUSE) for vip, backends in services.items() if not backends]
    yield from _elements(kind, table, SERVICES, served)
    yield from _elements(kind, table, UNSERVED, unserved)


def _elements(kind: int, table: str, mapping: str, elements: Sequence[bytes]) -> Iterator[Request]:
    flags = nl.NLM_F_CREATE if kind == nf.NFT_MSG_NEWSETELEM else 0
    for start in range(0, len(elements), _PER_MESSAGE):
        some = nest(nf.NFTA_SET_ELEM_LIST_ELEMENTS, *elements[start : start + _PER_MESSAGE])
        yield request(kind, flags, of_map(table, mapping) + some)


def _leads(vip: Address, chain: str) -> bytes:
    verdict = nest(nf.NFTA_DATA_VERDICT, GOTO, named(nf.NFTA_VERDICT_CHAIN, chain))
    return nest(nf.NFTA_LIST_ELEM, _key(vip.packed), nest(nf.NFTA_SET_ELEM_DATA, verdict))


def _backend(index: int, backend: Address) -> bytes:
    data = nest(nf.NFTA_SET_ELEM_DATA, attribute(nf.NFTA_DATA_VALUE, backend.packed))
    return nest(nf.NFTA_LIST_ELEM, _place(index), data)


@lru_cache(maxsize=1024)
def _place(index: int) -> bytes:
    return _key(number_key(index))


def _key(value: bytes) -> bytes:
    return nest(nf.NFTA_SET_ELEM_KEY, attribute(nf.NFTA_DATA_VALUE, value))


def of_map(table: str, mapping: str) -> bytes:
    """Name a map whose elements a message is about."""
    return named(nf.NFTA_SET_ELEM_LIST_TABLE, table) + named(nf.NFTA_SET_ELEM_LIST_SET, mapping)


def number_key(index: int) -> bytes:
    """Encode a key of a map from numbers: what numgen leaves in the register."""
    return struct.pack("=I", index)


def chain_of(vip: Address) -> str:
    """Name the chain of a service."""
    return f"s{vip}"


def _map_of(vip: Address, backends: tuple[Address, ...]) -> str:
    """Name a map, differently from the one it replaces. For a name with %d the kernel tries all numbers."""
    return f"m{vip}-{zlib.crc32(b''.join(backend.packed for backend in backends)):08x}"


def _chain_gone(table: str, vip: Address) -> Request:
    return request(nf.NFT_MSG_DELCHAIN, 0, _chain(table, chain_of(vip)))


def _new_chain(table: str, name: str, more: bytes = b"") -> Request:
    return request(nf.NFT_MSG_NEWCHAIN, nl.NLM_F_CREATE, _chain(table, name) + more)


def _chain(table: str, name: str) -> bytes:
    return named(nf.NFTA_CHAIN_TABLE, table) + named(nf.NFTA_CHAIN_NAME, name)


def _new_set(table: str, name: str, flags: int, types: _Types, more: bytes) -> Request:
    """Return the request that creates a map; its keys have four bytes, addresses or numbers."""
    numbers = {
        nf.NFTA_SET_FLAGS: flags,
        nf.NFTA_SET_KEY_TYPE: types.key,
        nf.NFTA_SET_KEY_LEN: 4,
        nf.NFTA_SET_DATA_TYPE: types.data,
        nf.NFTA_SET_DATA_LEN: types.size,
    }
    body = named(nf.NFTA_SET_TABLE, table) + named(nf.NFTA_SET_NAME, name) + more
    body += attribute(nf.NFTA_SET_USERDATA, types.orders)
    body += b"".join(numbered(kind, value) for kind, value in numbers.items())
    return request(nf.NFT_MSG_NEWSET, nl.NLM_F_CREATE, body)


def _new_rule(table: str, chain: str, rule: Rule) -> Request:
    flags = nl.NLM_F_CREATE | nl.NLM_F_APPEND
    return request(nf.NFT_MSG_NEWRULE, flags, _of_chain(table, chain) + rules.encode(rule))


def _of_chain(table: str, chain: str) -> bytes:
    return named(nf.NFTA_RULE_TABLE, table) + named(nf.NFTA_RULE_CHAIN, chain)
