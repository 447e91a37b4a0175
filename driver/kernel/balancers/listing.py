"""What our tables hold, as the kernel lists them.

The container may have changed them into anything that nft(8) can express: nothing is taken for granted except
that the kernel answers in its own format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers import rules
from driver.kernel.balancers.encoding import HEAD, IPV4, holds, listed, named, read_text, type_of
from driver.kernel.balancers.nft import (
    BASES,
    GOTO,
    REFUSE,
    SERVICES,
    UNSERVED,
    Base,
    chain_of,
    number_key,
    of_map,
)
from driver.kernel.balancers.rules import Rule
from driver.kernel.kinds.balancer import Services
from driver.kernel.names import NAMESPACE_PREFIX
from driver.kernel.netlink.socket import Channel, attribute, attributes
from driver.wish.values import Address

_Attributes = Mapping[int, bytes]
_ADDRESS_SIZE = 4
_COMMON = {name: base.rules for name, base in BASES.items()} | {REFUSE: rules.REFUSALS}
"""The rules that every table has."""


def read_tables(channel: Channel) -> dict[str, Services | None]:
    """Return our tables in the namespace; None for one that is not as we make them.

    Raises OSError.
    """
    tables = _by_table(channel, nf.NFT_MSG_GETTABLE, nf.NFTA_TABLE_NAME)
    ours = [name for name in tables if name.startswith(NAMESPACE_PREFIX)]
    if not ours:
        return {}
    chains = _by_table(channel, nf.NFT_MSG_GETCHAIN, nf.NFTA_CHAIN_TABLE)
    steps = _by_table(channel, nf.NFT_MSG_GETRULE, nf.NFTA_RULE_TABLE)
    return {name: _services(channel, name, chains[name], steps[name]) for name in ours}


def _services(
    channel: Channel, table: str, chains: Sequence[_Attributes], found_rules: Sequence[_Attributes]
) -> Services | None:
    """Return what a table holds; None when it is not whole, or holds something else.

    Chains are crossed off when they prove to be what some service needs; none must remain.
    """
    of_chain: dict[str, list[Rule]] = {read_text(chain[nf.NFTA_CHAIN_NAME]): [] for chain in chains}
    for rule in found_rules:
        decoded = rules.decode(rule.get(nf.NFTA_RULE_EXPRESSIONS, b""))
        of_chain.setdefault(read_text(rule[nf.NFTA_RULE_CHAIN]), []).append(decoded)
    fits = [rules.fit(of_chain.pop(name, []), wanted) for name, wanted in _COMMON.items()]
    if not _has_bases(chains) or not all(fits):
        return None
    found: dict[Address, tuple[Address, ...]] = {}
    for mapping in (UNSERVED, SERVICES):
        for key, value in _elements(channel, table, mapping):
            vip = _address(key)
            chain = chain_of(vip) if vip and mapping == SERVICES else REFUSE
            backends = () if chain == REFUSE else _backends(channel, table, of_chain.pop(chain, []))
            if vip is None or vip in found or backends is None or value != _goto(chain):
                return None
            found[vip] = backends
    return None if of_chain else found


def _backends(channel: Channel, table: str, found: Sequence[Rule]) -> tuple[Address, ...] | None:
    """Return the backends that a service's chain leads to; None when it is not as we make it.

    Only the rule names the map, and only the map tells how many it must turn to: so the rule is believed
    first, and then compared with the one that we would make for such a map.
    """
    mapping = rules.mapping_of(found[0]) if found else ""
    if not mapping:
        return None
    places = dict(_elements(channel, table, mapping))
    backends = [_address(_value(places.get(number_key(index), b""))) for index in range(len(places))]
    if not all(backends) or not rules.fit(found, [rules.translation(len(places), mapping)]):
        return None
    return _unturned(tuple(backend for backend in backends if backend))


def _unturned(backends: tuple[IPv4Address, ...]) -> tuple[Address, ...]:
    """Return them as the wish has them, if they differ only in which comes first."""
    start = backends.index(min(backends)) if backends else 0
    return backends[start:] + backends[:start]


def _has_bases(chains: Sequence[_Attributes]) -> bool:
    """Tell whether packets come in where they should, and nowhere else."""
    hooked = {read_text(chain[nf.NFTA_CHAIN_NAME]): chain for chain in chains if nf.NFTA_CHAIN_HOOK in chain}
    return hooked.keys() == BASES.keys() and all(_is_base(hooked[name], base) for name, base in BASES.items())


def _is_base(chain: _Attributes, base: Base) -> bool:
    """Tell whether *chain* is the one that *base* makes."""
    wanted = attributes(base.encode())
    found_hook, wanted_hook = (attributes(one[nf.NFTA_CHAIN_HOOK]) for one in (chain, wanted))
    del wanted[nf.NFTA_CHAIN_HOOK]
    return holds(found_hook, wanted_hook) and holds(chain, wanted)


def _goto(chain: str) -> bytes:
    # As the kernel answers: without our flags on nested attributes.
    return attribute(nf.NFTA_DATA_VERDICT, GOTO + named(nf.NFTA_VERDICT_CHAIN, chain))


def _elements(channel: Channel, table: str, mapping: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and what they lead to, an encoded attribute; what is missing is empty."""
    for data in channel.dump(type_of(nf.NFT_MSG_GETSETELEM), IPV4 + of_map(table, mapping)):
        for element in listed(attributes(data, HEAD.size).get(nf.NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
            values = attributes(element)
            yield _value(values.get(nf.NFTA_SET_ELEM_KEY, b"")), values.get(nf.NFTA_SET_ELEM_DATA, b"")


def _value(data: bytes) -> bytes:
    return attributes(data).get(nf.NFTA_DATA_VALUE, b"")


def _address(packed: bytes) -> IPv4Address | None:
    return IPv4Address(packed) if len(packed) == _ADDRESS_SIZE else None


def _by_table(channel: Channel, kind: int, table: int) -> Mapping[str, list[dict[int, bytes]]]:
    """List all objects of a *kind* by the table that they name in their attribute *table*."""
    found: dict[str, list[dict[int, bytes]]] = defaultdict(list)
    for data in channel.dump(type_of(kind), IPV4):
        values = attributes(data, HEAD.size)
        found[read_text(values[table])].append(values)
    return found
