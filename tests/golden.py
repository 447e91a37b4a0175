"""Golden files: our bytes as others show them, to be compared with what we mean.

`table.nft` is written by hand: it is the meaning. The others are made: by nft(8) and tc(8) from what the
kernel holds, by pyroute2 from messages, by a disassembler from the program. After a change that was meant,
make them anew (as root), and read the difference before it goes in:

    python -m tests.golden
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyroute2.netlink.nfnetlink import nftsocket
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from driver.kernel import netns
from driver.kernel.balancers import nft
from driver.kernel.balancers import numbers as nf
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.kinds import FLOOD_MAC, Balancer, FdbEntry, Neighbour, Row, Services
from driver.kernel.netlink import links, rows
from driver.kernel.netlink.socket import HEADER, Request
from driver.kernel.objects import index
from driver.kernel.shortcuts.program import assembled
from driver.reconcile.plan import diff
from driver.wish.values import Mac
from tests.disassembler import disassemble
from tests.kernel.hosts import Host, Space
from tests.kernel.samples import NS, network

FILES = Path(__file__).parent / "data" / "golden"
TABLE = "pyoverlay-net1"
SERVICES: Services = {
    ip_address("10.1.0.200"): tuple(map(ip_address, ("10.1.0.11", "10.1.0.12", "10.1.0.13"))),
    ip_address("10.1.0.201"): (),
}
ROWS_MAP, SENDERS_MAP = 3, 4
"""Descriptors."""
MAC = Mac("02:42:0a:01:00:09")
ROWS: list[Row] = [
    FdbEntry(NS, "vx0", MAC, ip_address("192.0.2.2")),
    FdbEntry(NS, "vx0", MAC, ip_address("2001:db8::2")),
    FdbEntry(NS, "vx0", FLOOD_MAC, ip_address("192.0.2.2")),
    Neighbour(NS, "vx0", ip_address("10.1.0.9"), MAC),
    Neighbour(NS, "vx0", ip_address("fd00:1::9"), MAC),
]

_NFT_MESSAGES = {
    nf.NFT_MSG_NEWTABLE: nftsocket.nft_table_msg,
    nf.NFT_MSG_DELTABLE: nftsocket.nft_table_msg,
    nf.NFT_MSG_NEWCHAIN: nftsocket.nft_chain_msg,
    nf.NFT_MSG_DELCHAIN: nftsocket.nft_chain_msg,
    nf.NFT_MSG_NEWRULE: nftsocket.nft_rule_msg,
    nf.NFT_MSG_DELRULE: nftsocket.nft_rule_msg,
    nf.NFT_MSG_NEWSET: nftsocket.nft_set_msg,
    nf.NFT_MSG_NEWSETELEM: nftsocket.nft_set_elem_list_msg,
    nf.NFT_MSG_DELSETELEM: nftsocket.nft_set_elem_list_msg,
}


def made_by_us(namespace: Space) -> None:
    """Set the balancer of SERVICES."""
    with closing(NetlinkSandboxes()) as sandboxes:
        want = index([Balancer(namespace.path, TABLE, SERVICES)])
        assert sandboxes.apply(diff(want, sandboxes.read_sandbox(namespace.path))) == {}


def made_by_nft(namespace: Space) -> None:
    """Have nft(8) make the table that we mean."""
    namespace.run(f"nft -f {FILES / 'table.nft'}")


def table(namespace: Space) -> str:
    """List the tables of a namespace, without what differs from one to the next."""
    (listed,) = [json.loads(namespace.run("nft -j list ruleset"))]
    return _text([_without(one, "handle") for one in listed["nftables"] if "metainfo" not in one])


def shortcut(namespace: Space) -> str:
    """List the filters of a tunnel."""
    filters = namespace.json("tc -j filter show dev vx0 ingress")
    return _text([_without(one, "id", "tag", "jited") for one in filters])


def program() -> str:
    """List the program behind a shortcut."""
    return "\n".join(disassemble(assembled(ROWS_MAP, SENDERS_MAP))) + "\n"


def messages() -> str:
    """List messages as pyroute2 reads them. (Of ICMP codes it has those of another table.)"""
    gone = nft.Difference.between(SERVICES, {ip_address("10.1.0.201"): (ip_address("10.1.0.11"),)})
    tables = [*nft.create(TABLE, SERVICES, 0), *nft.change(TABLE, gone, 1), *nft.remove(TABLE)]
    changes = [made for row in ROWS for made in (row.set_request(5), row.delete_request(5))]
    return _text(
        [_read(_NFT_MESSAGES[one.kind & 0xFF], one) for one in tables]
        + [_read(ndmsg, one) for one in [*changes, rows.forgotten(5, MAC)]]
        + [_read(ifinfmsg, links.signature("p0", "pyoverlay container"))]
    )


PURE: dict[str, Callable[[], str]] = {"program.bpf": program, "messages.json": messages}
"""What needs no kernel."""


def _read(parser: Any, request: Request) -> Any:
    kind, flags, body = request
    message = parser(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body)
    message.decode()
    fields = {name: value for name, value in message.items() if name != "header" and name[:2] != "__"}
    return {"nlmsg_type": kind, "nlmsg_flags": flags, **_plain(fields)}


def _plain(value: Any) -> Any:
    """Turn what pyroute2 reads into what JSON has."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        attributes = {slot[0]: _plain(slot[1]) for slot in value.get("attrs", ())}
        return {name: _plain(one) for name, one in value.items() if name != "attrs"} | attributes
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value


def _without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, *keys) for key, one in value.items() if key not in keys}
    return [_without(one, *keys) for one in value] if isinstance(value, list) else value


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _of_kernel() -> Iterator[tuple[str, str]]:
    with closing(Space(netns.create())) as namespace:
        made_by_us(namespace)
        yield "table.json", table(namespace)
    with tempfile.TemporaryDirectory() as folder, closing(Host(Path(folder) / "netns")) as host:
        host.kernel.apply(diff(network(), {}))
        with closing(host.overlay(NS)) as overlay:
            yield "shortcut.json", shortcut(overlay)


def main() -> None:
    for name, text in [*_of_kernel(), *((name, make()) for name, make in PURE.items())]:
        (FILES / name).write_text(text)


if __name__ == "__main__":
    main()
