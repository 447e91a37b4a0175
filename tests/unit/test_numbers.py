"""The kernel's numbers are those of its headers, wherever these are installed."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from driver.kernel import assembler
from driver.kernel.balancers import numbers as nf
from driver.kernel.netlink import numbers as nl
from driver.kernel.shortcuts import bpf

HEADERS = Path("/usr/include")
NAMES = """
    asm-generic/socket.h linux/sockios.h linux/netlink.h linux/rtnetlink.h linux/if.h linux/if_link.h
    linux/ip.h linux/if_addr.h
    linux/netconf.h linux/neighbour.h linux/pkt_sched.h linux/pkt_cls.h linux/if_ether.h
    linux/icmp.h linux/netfilter.h linux/netfilter_ipv4.h linux/netfilter/nfnetlink.h
    linux/bpf_common.h linux/bpf.h linux/netfilter/nf_tables.h
    linux/netfilter/nfnetlink_conntrack.h linux/netfilter/nf_conntrack_tcp.h
    linux/netfilter/nf_conntrack_tuple_common.h linux/sock_diag.h linux/inet_diag.h
"""
ELSEWHERE = {
    "AF_BRIDGE", "SOL_NETLINK",  # the C library's headers
    "TCP_LISTEN",  # net/tcp_states.h
    "IFLA_BRPORT_MAB",  # Linux 6.2
    "SENDERS",  # our own
    "TYPE_INTEGER", "TYPE_IPADDR",  # nft(8)
    "NFTNL_UDATA_SET_KEYBYTEORDER", "NFTNL_UDATA_SET_DATABYTEORDER",
    "BYTEORDER_HOST_ENDIAN", "BYTEORDER_BIG_ENDIAN",
}  # fmt: skip
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ENUM = re.compile(r"\benum\s*\w*\s*\{(.*?)\}", re.DOTALL)
_DEFINE = re.compile(r"^#\s*define\s+(\w+)[ \t]+(.+)$", re.MULTILINE)
_LONG = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+")


def known() -> dict[str, int]:
    """What the headers define, as far as that is a number."""
    found: dict[str, int] = {}
    for name in NAMES.split():
        text = _LONG.sub(r"\1", _COMMENT.sub("", (HEADERS / name).read_text()))
        for block in _ENUM.findall(text):
            number = -1
            for item in re.sub(r"^\s*#.*$", "", block, flags=re.MULTILINE).split(","):
                key, _, value = (part.strip() for part in item.partition("="))
                number = _value(value, found) if value else number + 1
                found[key] = number
        for key, value in _DEFINE.findall(text):
            found.setdefault(key, _value(value, found))
    return found


def _is_kernels(name: str) -> bool:
    return name.isupper() and not name.startswith("_") and name not in ELSEWHERE


def _value(expression: str, found: dict[str, int]) -> int:
    try:
        return int(eval(expression, {"__builtins__": {}}, found))
    except (SyntaxError, NameError, TypeError, ValueError):  # a macro, a string, a type
        return 1 << 64


@pytest.mark.skipif(not (HEADERS / "linux/netlink.h").exists(), reason="needs linux-libc-dev")
@pytest.mark.parametrize("table", [nl, nf, assembler, bpf])
def test_they_are_the_kernels(table: ModuleType) -> None:
    ours = {key: value for key, value in vars(table).items() if isinstance(value, int) and _is_kernels(key)}
    headers = known()
    # The kernel's have more bits, of which an attribute's number, or a field, has none.
    mask = {"NLA_TYPE_MASK": 0xFFFF, "INET_DIAG_NOCOOKIE": 0xFFFFFFFF}
    assert len(ours) > 10
    assert {k: v for k, v in ours.items() if headers[k] & mask.get(k, ~0) != v} == {}
