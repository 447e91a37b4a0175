"""Balancers as tables of nftables (nft(8), linux/netfilter/nf_tables.h)::

    table ip pyoverlay-u4m9hzge31ts {
        map services { type ipv4_addr : verdict; elements = { 10.62.0.2 : goto s10.62.0.2, … } }
        chain output { type nat hook output priority -100; policy accept; ip daddr vmap @services }
        chain s10.62.0.2 { dnat to numgen inc mod 3 map { 0 : 10.62.0.5, 1 : 10.62.0.6, 2 : 10.62.0.7 } }
        chain s10.62.0.9 { meta l4proto tcp reject with tcp reset; reject }
    }

The messages are packed here and not by nft(8): one change has to reach fifty containers within fifty
milliseconds, and to start a program in each of them takes ten times as long.
"""

from __future__ import annotations

import socket
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final

from driver.kernel.kinds.balancer import Services
from driver.kernel.names import NAMESPACE_PREFIX
from driver.kernel.netlink.socket import APPEND, CREATE, Channel, Request, attribute, attributes
from driver.wish.values import Address

PROTOCOL: Final = 12
"""NETLINK_NETFILTER: what a channel for these messages is opened with."""

_SUBSYSTEM: Final = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = (_SUBSYSTEM << 8 | n for n in range(6))
_NEWRULE, _GETRULE, _DELRULE, _NEWSET = (_SUBSYSTEM << 8 | n for n in range(6, 10))
_NEWELEMENT, _GETELEMENT, _DELELEMENT, _GETGEN = (_SUBSYSTEM << 8 | n for n in (12, 13, 14, 16))
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 0x10, 0x11, 1
_HEAD = struct.Struct("!BBH")
_IP = _HEAD.pack(socket.AF_INET, 0, 0)
_EDGE = _HEAD.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
_NESTED: Final = 0x8000

_TABLE, _NAME, _RULE_CHAIN, _EXPRESSIONS, _ELEMENTS = 1, 3, 2, 4, 3
_ANONYMOUS, _CONSTANT, _MAP = 1, 2, 8
_INTEGER, _IPV4_ADDRESS, _VERDICT, _VERDICT_SIZE = 4, 7, 0xFFFFFF00, 16
_GOTO, _ACCEPT, _OUTPUT, _PRIORITY = -4, 1, 3, -100
#: For nft(8) to show them: that keys, and values, are in the machine's (1) or the network's (2) order.
_ORDERS = {_INTEGER: struct.pack("=BBIBBI", 0, 4, 1, 1, 4, 2), _IPV4_ADDRESS: struct.pack("=BBI", 0, 4, 2)}

_SERVICES, _BASE = "services", "output"
_PER_MESSAGE: Final = 1000
"""Elements: the list of them has at most 64 KiB."""

Expression = tuple[str, Mapping[int, bytes]]
"""One step of a rule, and the attributes by which it is known."""
Rule = Sequence[Expression]


def generation(channel: Channel) -> int:
    """Return the number that changes with every change of any table in the namespace; raise OSError."""
    answer = channel.ask(_GETGEN, _IP)
    return int.from_bytes(attributes(answer, _HEAD.size)[1], "big") if answer else 0


def commit(channel: Channel, requests: Sequence[Request], expected: int) -> int:
    """Carry out all of *requests* or none, and return the new generation.

    Raises Refused, ERESTART when *expected* is not the generation (any more).
    """
    begin = Request(_BATCH_BEGIN, 0, _EDGE + attribute(_BATCH_GENERATION, _number(expected)))
    channel.transact(begin, requests, Request(_BATCH_END, 0, _EDGE))
    return (expected + 1) & 0xFFFFFFFF or 1  # as nf_tables_commit counts


def create(table: str, services: Services, turn: int) -> list[Request]:
    """Return what makes a table."""
    hook = _nest(4, attribute(1, _number(_OUTPUT)), attribute(2, _number(_PRIORITY)))
    return [
        Request(_NEWTABLE, CREATE, _IP + attribute(_TABLE, _text(table))),
        _new_set(table, _SERVICES, _MAP, (_IPV4_ADDRESS, _VERDICT), attribute(10, _number(1))),
        _new_chain(table, _BASE, hook + attribute(5, _number(_ACCEPT)) + attribute(7, _text("nat"))),
        _new_rule(table, _BASE, _DISPATCH),
        *_add(table, services, turn),
    ]


@dataclass(frozen=True, slots=True)
class Difference:
    """What is to be done to a sound table; the same for all containers that hold the same."""

    gone: Sequence[Address]
    new: Services
    changed: Services
    left: Mapping[Address, frozenset[Address]]
    """The backends that a virtual address leads to no longer."""

    @classmethod
    def between(cls, have: Services, want: Services) -> Difference:
        """Compare two tables."""
        new = {vip: backends for vip, backends in want.items() if vip not in have}
        changed = {vip: b for vip, b in want.items() if vip not in new and have[vip] != b}
        gone = [vip for vip in have if vip not in want]
        left = {vip: frozenset(have[vip]) - frozenset(want.get(vip, ())) for vip in [*gone, *changed]}
        return cls(gone, new, changed, {vip: backends for vip, backends in left.items() if backends})


def change(table: str, difference: Difference, turn: int) -> list[Request]:
    """Return what makes *difference* true of a sound table."""
    gone = difference.gone
    requests = [*_elements(_DELELEMENT, table, gone), *(_chain_gone(table, vip) for vip in gone)]
    requests += _add(table, difference.new, turn)
    for vip, backends in difference.changed.items():
        requests.append(Request(_DELRULE, 0, _IP + _of_chain(table, _chain_of(vip))))
        requests += _rules(table, vip, _turned(backends, turn))
    return requests


def remove(table: str) -> list[Request]:
    """Return what removes a table and all that is in it."""
    return [Request(_DELTABLE, 0, _IP + attribute(_TABLE, _text(table)))]


def read_tables(channel: Channel) -> dict[str, Services | None]:
    """Return the tables of ours in the namespace; None for one that is not as we make them.

    Raises OSError.
    """
    names = [_read_text(attributes(data, _HEAD.size)[_TABLE]) for data in channel.dump(_GETTABLE, _IP)]
    ours = [name for name in names if name.startswith(NAMESPACE_PREFIX)]
    if not ours:
        return {}
    chains = _by_table(channel, _GETCHAIN)
    rules = _by_table(channel, _GETRULE)
    return {name: _services(channel, name, chains[name], rules[name]) for name in ours}


def _add(table: str, services: Services, turn: int) -> Iterator[Request]:
    for vip, backends in services.items():
        yield _new_chain(table, _chain_of(vip))
        yield from _rules(table, vip, _turned(backends, turn))
    yield from _elements(_NEWELEMENT, table, list(services))


def _turned(backends: tuple[Address, ...], turn: int) -> tuple[Address, ...]:
    start = turn % len(backends) if backends else 0
    return backends[start:] + backends[:start]


@lru_cache(maxsize=8192)
def _rules(table: str, vip: Address, backends: tuple[Address, ...]) -> list[Request]:
    """Return what fills a service's chain. Many containers have the same."""
    if not backends:
        return [_new_rule(table, _chain_of(vip), rule) for rule in _REFUSALS]
    name = _map_of(vip, backends)
    # The map's number only has to be unique within one transaction.
    number, size = attribute(10, vip.packed), _nest(9, attribute(1, _number(len(backends))))
    flags = _ANONYMOUS | _CONSTANT | _MAP
    body = b"".join(
        _nest(1, _nest(1, attribute(1, struct.pack("=I", index))), _nest(2, attribute(1, backend.packed)))
        for index, backend in enumerate(backends)
    )
    of_map = attribute(1, _text(table)) + attribute(2, _text(name))
    return [
        _new_set(table, name, flags, (_INTEGER, _IPV4_ADDRESS), number + size),
        Request(_NEWELEMENT, CREATE, _IP + of_map + _nest(_ELEMENTS, body)),
        _new_rule(table, _chain_of(vip), _translation(len(backends), name)),
    ]


def _elements(kind: int, table: str, vips: Sequence[Address]) -> Iterator[Request]:
    flags = CREATE if kind == _NEWELEMENT else 0
    of_map = attribute(1, _text(table)) + attribute(2, _text(_SERVICES))
    for start in range(0, len(vips), _PER_MESSAGE):
        body = b"".join(_nest(1, *_service_element(vip)) for vip in vips[start : start + _PER_MESSAGE])
        yield Request(kind, flags, _IP + of_map + _nest(_ELEMENTS, body))


def _service_element(vip: Address) -> tuple[bytes, bytes]:
    verdict = _nest(2, attribute(1, _number(_GOTO)), attribute(2, _text(_chain_of(vip))))
    return _nest(1, attribute(1, vip.packed)), _nest(2, verdict)


def _chain_of(vip: Address) -> str:
    return f"s{vip}"


def _map_of(vip: Address, backends: tuple[Address, ...]) -> str:
    """Name a map: not as the one that it replaces. Of names with %d the kernel tries all that there are."""
    return f"m{vip}-{zlib.crc32(b''.join(backend.packed for backend in backends)):08x}"


def _chain_gone(table: str, vip: Address) -> Request:
    return Request(_DELCHAIN, 0, _IP + attribute(1, _text(table)) + attribute(_NAME, _text(_chain_of(vip))))


def _new_chain(table: str, name: str, more: bytes = b"") -> Request:
    return Request(_NEWCHAIN, CREATE, _IP + attribute(1, _text(table)) + attribute(_NAME, _text(name)) + more)


def _new_set(table: str, name: str, flags: int, types: tuple[int, int], more: bytes) -> Request:
    key, value = types
    size = _VERDICT_SIZE if value == _VERDICT else 4
    numbers = ((3, flags), (4, key), (5, 4), (6, value), (7, size))
    body = attribute(1, _text(table)) + attribute(2, _text(name)) + more + attribute(13, _ORDERS[key])
    return Request(
        _NEWSET, CREATE, _IP + body + b"".join(attribute(kind, _number(number)) for kind, number in numbers)
    )


def _new_rule(table: str, chain: str, rule: Rule) -> Request:
    steps = [
        _nest(1, attribute(1, _text(name)), _nest(2, *(attribute(k, v) for k, v in values.items())))
        for name, values in rule
    ]
    return Request(_NEWRULE, CREATE | APPEND, _IP + _of_chain(table, chain) + _nest(_EXPRESSIONS, *steps))


def _of_chain(table: str, chain: str) -> bytes:
    return attribute(1, _text(table)) + attribute(_RULE_CHAIN, _text(chain))


def _translation(size: int, mapping: str) -> Rule:
    """Return the rule for a service with *size* backends in *mapping*."""
    one = _number(1)
    return (
        ("numgen", {1: one, 2: _number(size), 3: _number(0)}),
        ("lookup", {1: _text(mapping), 2: one, 3: one}),
        ("nat", {1: one, 2: _number(socket.AF_INET), 3: one}),
    )


def _services(
    channel: Channel, table: str, chains: Sequence[dict[int, bytes]], rules: Sequence[dict[int, bytes]]
) -> Services | None:
    """Return what a table holds; None when it is not whole, or holds something else."""
    of_chain: dict[str, list[list[Expression]]] = {_read_text(chain[_NAME]): [] for chain in chains}
    for rule in rules:
        of_chain.setdefault(_read_text(rule[_RULE_CHAIN]), []).append(_expressions(rule))
    base = [chain for chain in chains if 4 in chain]
    if len(base) != 1 or not _is_base(base[0]) or not _fits(of_chain.pop(_BASE), [_DISPATCH]):
        return None
    found: dict[Address, tuple[Address, ...]] = {}
    for key, value in _read_elements(channel, table, _SERVICES):
        vip = IPv4Address(key)
        backends = _backends(channel, table, of_chain.pop(_chain_of(vip), []))
        if backends is None or value != _goto(vip):
            return None
        found[vip] = backends
    return None if of_chain else found


def _backends(channel: Channel, table: str, rules: Sequence[Rule]) -> tuple[Address, ...] | None:
    if _fits(rules, _REFUSALS):
        return ()
    mapping = _read_text(rules[0][1][1].get(1, b"")) if rules and len(rules[0]) > 1 else ""
    if not mapping:
        return None
    found = {
        int.from_bytes(key, sys.byteorder): IPv4Address(attributes(value)[1])
        for key, value in _read_elements(channel, table, mapping)
    }
    if sorted(found) != list(range(len(found))) or not _fits(rules, [_translation(len(found), mapping)]):
        return None
    return _unturned(tuple(found[index] for index in range(len(found))))


def _unturned(backends: tuple[IPv4Address, ...]) -> tuple[Address, ...]:
    """Return them as the wish has them, if they differ from that only in who is the first."""
    start = backends.index(min(backends)) if backends else 0
    return backends[start:] + backends[:start]


def _is_base(chain: Mapping[int, bytes]) -> bool:
    hook = attributes(chain[4])
    return (
        _read_text(chain[_NAME]) == _BASE
        and (hook.get(1), hook.get(2)) == (_number(_OUTPUT), _number(_PRIORITY))
        and (chain.get(5), chain.get(7)) == (_number(_ACCEPT), _text("nat"))
    )


def _fits(found: Sequence[Rule], wanted: Sequence[Rule]) -> bool:
    return len(found) == len(wanted) and all(
        len(one) == len(other) and all(_equals(*steps) for steps in zip(one, other, strict=True))
        for one, other in zip(found, wanted, strict=True)
    )


def _equals(found: Expression, wanted: Expression) -> bool:
    return found[0] == wanted[0] and all(found[1].get(kind) == value for kind, value in wanted[1].items())


def _expressions(rule: Mapping[int, bytes]) -> list[Expression]:
    steps = [attributes(step) for step in _list(rule.get(_EXPRESSIONS, b""))]
    return [(_read_text(step[1]), attributes(step.get(2, b""))) for step in steps]


def _read_elements(channel: Channel, table: str, mapping: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and what they lead to, an encoded attribute."""
    question = _IP + attribute(1, _text(table)) + attribute(2, _text(mapping))
    for data in channel.dump(_GETELEMENT, question):
        for element in _list(attributes(data, _HEAD.size).get(_ELEMENTS, b"")):
            values = attributes(element)
            yield attributes(values[1])[1], values.get(2, b"")


def _goto(vip: Address) -> bytes:
    # As the kernel answers: without our marks for what is nested.
    code = attribute(1, _number(_GOTO)) + attribute(2, _text(_chain_of(vip)))
    return attribute(2, code)


def _by_table(channel: Channel, kind: int) -> Mapping[str, list[dict[int, bytes]]]:
    found: dict[str, list[dict[int, bytes]]] = defaultdict(list)
    for data in channel.dump(kind, _IP):
        values = attributes(data, _HEAD.size)
        found[_read_text(values[_TABLE])].append(values)
    return found


def _list(data: bytes) -> Iterator[bytes]:
    """Yield the values of attributes that all have the same number."""
    offset = 0
    while offset + 4 <= len(data):
        (length,) = struct.unpack_from("=H", data, offset)
        yield data[offset + 4 : offset + length]
        offset += max(4, length + 3 & ~3)


def _nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def _number(value: int) -> bytes:
    return struct.pack("!I", value & 0xFFFFFFFF)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _read_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


#: ip daddr vmap @services
_DISPATCH: Final[Rule] = (
    ("payload", {1: _number(1), 2: _number(1), 3: _number(16), 4: _number(4)}),
    ("lookup", {1: _text(_SERVICES), 2: _number(1), 3: _number(0)}),
)
#: meta l4proto tcp reject with tcp reset; reject. Of a TCP socket that is just connecting, the kernel
#: loses an ICMP error: it would time out.
_REFUSALS: Final[Sequence[Rule]] = (
    (
        ("meta", {2: _number(16), 1: _number(1)}),
        ("cmp", {1: _number(1), 2: _number(0), 3: attribute(1, b"\x06")}),
        ("reject", {1: _number(1)}),
    ),
    (("reject", {1: _number(0), 2: b"\x03"}),),
)
