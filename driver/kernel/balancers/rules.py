"""The rules of our tables, as the kernel has them: expressions, which pass values on in a register."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Final

from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers.encoding import holds, listed, nest, number, read_text, text
from driver.kernel.netlink.socket import attribute, attributes

Expression = tuple[str, Mapping[int, bytes]]
"""One step of a rule, and the attributes by which it is recognised."""
Rule = Sequence[Expression]

_REGISTER: Final = number(nf.NFT_REG_1)
_DESTINATION, _ADDRESS_SIZE = 16, 4
"""Of an IPv4 header."""


def dispatch(services: str) -> Rule:
    """Return "ip daddr vmap @*services*"."""
    return _DESTINATION_ADDRESS, _lookup(services, number(nf.NFT_REG_VERDICT))


def tracked(rule: Rule) -> Rule:
    """Return "ct direction original", and the rest of *rule*.

    All that *rule* is about goes there; but the kernel tracks connections, and translates those that there
    are, only for as long as some rule of the namespace needs it.
    """
    return _DIRECTION, _equals(bytes([nf.IP_CT_DIR_ORIGINAL])), *rule


def translation(size: int, mapping: str) -> Rule:
    """Return "dnat to numgen inc mod *size* map @*mapping*"."""
    return _counter(size), _lookup(mapping, _REGISTER), _DNAT


def encode(rule: Rule) -> bytes:
    """Encode a rule's expressions."""
    return nest(nf.NFTA_RULE_EXPRESSIONS, *(_encode(name, values) for name, values in rule))


def decode(data: bytes) -> Rule:
    """Decode a rule's expressions, as the kernel lists them."""
    steps = [attributes(step) for step in listed(data)]
    return [(read_text(s[nf.NFTA_EXPR_NAME]), attributes(s.get(nf.NFTA_EXPR_DATA, b""))) for s in steps]


def fit(found: Sequence[Rule], wanted: Sequence[Rule]) -> bool:
    """Tell whether rules that were read are those *wanted*."""
    return len(found) == len(wanted) and all(
        len(one) == len(other) and all(_fits(*steps) for steps in zip(one, other, strict=True))
        for one, other in zip(found, wanted, strict=True)
    )


def mapping_of(rule: Rule) -> str:
    """Return which map a translation uses; empty when *rule* is not one."""
    names = [values.get(nf.NFTA_LOOKUP_SET, b"") for name, values in rule if name == "lookup"]
    return read_text(names[0]) if names else ""


def _encode(name: str, values: Mapping[int, bytes]) -> bytes:
    data = nest(nf.NFTA_EXPR_DATA, *(attribute(kind, value) for kind, value in values.items()))
    return nest(nf.NFTA_LIST_ELEM, attribute(nf.NFTA_EXPR_NAME, text(name)), data)


def _fits(found: Expression, wanted: Expression) -> bool:
    return found[0] == wanted[0] and holds(found[1], wanted[1])


def _counter(size: int) -> Expression:
    values = {
        nf.NFTA_NG_DREG: _REGISTER,
        nf.NFTA_NG_MODULUS: number(size),
        nf.NFTA_NG_TYPE: number(nf.NFT_NG_INCREMENTAL),
    }
    return "numgen", values


def _lookup(mapping: str, to: bytes) -> Expression:
    values = {nf.NFTA_LOOKUP_SET: text(mapping), nf.NFTA_LOOKUP_SREG: _REGISTER, nf.NFTA_LOOKUP_DREG: to}
    return "lookup", values


def _equals(value: bytes) -> Expression:
    values = {
        nf.NFTA_CMP_SREG: _REGISTER,
        nf.NFTA_CMP_OP: number(nf.NFT_CMP_EQ),
        nf.NFTA_CMP_DATA: attribute(nf.NFTA_DATA_VALUE, value),
    }
    return "cmp", values


def _reject(how: int, more: Mapping[int, bytes]) -> Expression:
    return "reject", {nf.NFTA_REJECT_TYPE: number(how), **more}


_DNAT: Final[Expression] = (
    "nat",
    {
        nf.NFTA_NAT_TYPE: number(nf.NFT_NAT_DNAT),
        nf.NFTA_NAT_FAMILY: number(socket.AF_INET),
        nf.NFTA_NAT_REG_ADDR_MIN: _REGISTER,
    },
)
_DESTINATION_ADDRESS: Final[Expression] = (
    "payload",
    {
        nf.NFTA_PAYLOAD_DREG: _REGISTER,
        nf.NFTA_PAYLOAD_BASE: number(nf.NFT_PAYLOAD_NETWORK_HEADER),
        nf.NFTA_PAYLOAD_OFFSET: number(_DESTINATION),
        nf.NFTA_PAYLOAD_LEN: number(_ADDRESS_SIZE),
    },
)
_PROTOCOL: Final[Expression] = (
    "meta",
    {nf.NFTA_META_KEY: number(nf.NFT_META_L4PROTO), nf.NFTA_META_DREG: _REGISTER},
)
_DIRECTION: Final[Expression] = (
    "ct",
    {nf.NFTA_CT_KEY: number(nf.NFT_CT_DIRECTION), nf.NFTA_CT_DREG: _REGISTER},
)


#: meta l4proto tcp reject with tcp reset; reject. Of a TCP socket that is just connecting, the kernel
#: loses an ICMP error: it would time out.
REFUSALS: Final[Sequence[Rule]] = (
    (_PROTOCOL, _equals(bytes([socket.IPPROTO_TCP])), _reject(nf.NFT_REJECT_TCP_RST, {})),
    (_reject(nf.NFT_REJECT_ICMP_UNREACH, {nf.NFTA_REJECT_ICMP_CODE: bytes([nf.ICMP_PORT_UNREACH])}),),
)
