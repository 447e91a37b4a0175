"""What other hosts have: merging the control plane's views into what this host forwards to. Pure.

A node with this host's own VTEP is no other one: a former installation of the plugin here, whose records are
still in the store and whose rows are still in the kernel. To send to it would be to send to ourselves.

Four rules decide what may be forgotten, because a row removed too early is an outage and a
row removed late points at a dead host:

* A node that is in the view has said all that it has (its record is stored last), so what it
  does not list is gone.
* A node that is not in the view keeps its rows for a grace: its lease ran out, or the store is
  new and the node has not reached it yet. An address that another node claims moves at once.
  After the grace the rows go, unless the host answers: then only its control plane is away, and
  its containers live.
* When more than half of the known nodes are missing, the fault is more likely ours or the
  store's than theirs, and nothing is removed. Those that are still missing when most have come
  back get a whole grace from then on: they are likely on their way.
* While we ourselves are cut off from the store, nobody is judged: what is known is old. Those that are
  missing when we are back get a whole grace, as above.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from driver.wish.model import Peer, PeerNode, Peers
from driver.wish.records import EndpointRecord, NodeRecord, ServiceRecord, View
from driver.wish.values import Address, NetworkId, NodeId

Heard = Mapping[NetworkId, Mapping[Address, ServiceRecord]]

GRACE = 30.0
"""Seconds that the rows of a node stay after its lease was seen to be gone."""


def merge(
    peers: Peers,
    view: View,
    me: NodeId,
    followed: Iterable[NetworkId],
    now: float,
    *,
    own_vtep: Address | None = None,
) -> Peers:
    """Return what *peers* becomes in the light of *view* at monotonic second *now*.

    While the view is not connected nothing changes, except that networks no longer *followed*
    are dropped. Time alone removes nothing here: see `overdue` and `settle`.
    """
    wanted = frozenset(followed)
    if not view.connected:
        return _restrict(peers, wanted)
    ours = {me} | {id_ for id_, record in view.nodes.items() if record.vtep == own_vtep}
    others = {id_: node for id_, node in peers.nodes.items() if node.vtep != own_vtep}
    nodes = _nodes(others, view, ours, now)
    entries = {
        network: _entries(peers.entries.get(network, {}), view, network, nodes, ours)
        for network in sorted(wanted)
        if network in view.endpoints or network in peers.entries
    }
    kept = {n: _same_or_new(peers.entries.get(n), e) for n, e in entries.items()}
    numbers = (record.claimed for listed in view.endpoints.values() for record in listed.values())
    return Peers(
        nodes,
        kept,
        (peers.synced | view.endpoints.keys()) & wanted,
        max(peers.latest, max(numbers, default=0)),
    )


def heard(known: Heard, view: View, followed: Collection[NetworkId]) -> Heard:
    """Return what *known* becomes in the light of *view*, for the networks that are followed."""
    now = {**known, **view.services} if view.connected else known
    return {network: services for network, services in now.items() if network in followed}


def overdue(peers: Peers, now: float) -> frozenset[Address]:
    """Return the VTEPs of nodes whose grace is over; none while the fault is likely not theirs."""
    return frozenset(node.vtep for node in _late(peers, now).values())


def settle(peers: Peers, answering: Collection[Address], now: float) -> Peers:
    """Drop the nodes that were overdue at *now*, with their rows; those *answering* get another grace."""
    late = _late(peers, now)
    alive = {i: replace(node, stale_since=now) for i, node in late.items() if node.vtep in answering}
    gone = late.keys() - alive.keys()
    nodes = {id_: alive.get(id_, node) for id_, node in peers.nodes.items() if id_ not in gone}
    entries = {
        network: _same_or_new(rows, {a: peer for a, peer in rows.items() if peer.node not in gone})
        for network, rows in peers.entries.items()
    }
    return replace(peers, nodes=nodes, entries=entries)


def with_new_grace(peers: Peers, now: float) -> Peers:
    """Give all nodes that are missing a whole grace from *now* on, when we have just reached the store."""
    missing = {i: node for i, node in peers.nodes.items() if node.stale_since is not None}
    granted = {i: replace(node, stale_since=now) for i, node in missing.items()}
    return replace(peers, nodes={**peers.nodes, **granted}) if granted else peers


def _late(peers: Peers, now: float) -> dict[NodeId, PeerNode]:
    if too_many_stale(peers):
        return {}
    return {
        id_: node
        for id_, node in peers.nodes.items()
        if node.stale_since is not None and now - node.stale_since >= GRACE
    }


def adopt(peers: Peers, network: NetworkId, rows: Mapping[Address, Peer], now: float) -> Peers:
    """Take over the rows that a former process left in the kernel, as belonging to nodes not seen yet."""
    names = {vtep: NodeId(f"vtep {vtep}") for vtep in {peer.vtep for peer in rows.values()}}
    nodes = {name: PeerNode(vtep, stale_since=now) for vtep, name in names.items()}
    known = {address: Peer(peer.mac, peer.vtep, names[peer.vtep]) for address, peer in rows.items()}
    return replace(peers, nodes={**nodes, **peers.nodes}, entries={**peers.entries, network: known})


def forget_network(peers: Peers, network: NetworkId) -> Peers:
    """Forget what others have in a network."""
    return _restrict(peers, frozenset((peers.entries.keys() | peers.synced) - {network}))


def too_many_stale(peers: Peers) -> bool:
    """Return whether more than half of the known nodes (and more than one) are missing."""
    stale = sum(node.stale_since is not None for node in peers.nodes.values())
    return stale > 1 and stale * 2 > len(peers.nodes)


def _nodes(
    known: Mapping[NodeId, PeerNode], view: View, ours: Collection[NodeId], now: float
) -> dict[NodeId, PeerNode]:
    live = {id_: _live(known.get(id_), record) for id_, record in view.nodes.items() if id_ not in ours}
    away = {id_: node for id_, node in known.items() if id_ not in live}
    if not away:
        return live
    live_vteps = {node.vtep for node in live.values()}
    doubted = too_many_stale(Peers(nodes=known))
    stale = {
        id_: replace(node, stale_since=now) if node.stale_since is None or doubted else node
        for id_, node in away.items()
        if node.vtep not in live_vteps
    }
    return {**live, **stale}


def _live(known: PeerNode | None, record: NodeRecord) -> PeerNode:
    now = PeerNode(record.vtep, mtu=record.mtu)
    return known if known == now else now


def _entries(
    known: Mapping[Address, Peer],
    view: View,
    network: NetworkId,
    nodes: Mapping[NodeId, PeerNode],
    ours: Collection[NodeId],
) -> dict[Address, Peer]:
    """Keep the rows of stale nodes, whose records may be lost; trust the view for all other nodes."""
    if network not in view.endpoints:
        return dict(known)
    listed = view.endpoints[network]
    stale = {id_ for id_, node in nodes.items() if node.stale_since is not None}
    entries = _unclaimed(known, listed, {*nodes, *ours}, stale) if stale else {}
    for address, record in listed.items():
        node = nodes.get(record.node)
        if node is not None and record.node not in ours:
            entries[address] = _peer(known.get(address), record, node)
    return entries


def _unclaimed(
    known: Mapping[Address, Peer],
    listed: Mapping[Address, EndpointRecord],
    there: Collection[NodeId],
    stale: Collection[NodeId],
) -> dict[Address, Peer]:
    """Return the rows of *stale* nodes.

    A record whose node is not *there* claims nothing: an adopted row may be that very node's.
    """
    claimed = {address for address, record in listed.items() if record.node in there}
    return {a: peer for a, peer in known.items() if peer.node in stale and a not in claimed}


def _peer(known: Peer | None, record: EndpointRecord, node: PeerNode) -> Peer:
    """Keep the old object when nothing changed: readers take the same object for no work."""
    if known is None or known.mac != record.mac or known.node != record.node or known.vtep != node.vtep:
        return Peer(record.mac, node.vtep, record.node)
    return known


def _restrict(peers: Peers, wanted: frozenset[NetworkId]) -> Peers:
    if peers.entries.keys() | peers.synced <= wanted:
        return peers
    entries = {n: e for n, e in peers.entries.items() if n in wanted}
    return replace(peers, entries=entries, synced=peers.synced & wanted)


def _same_or_new(old: Mapping[Address, Peer] | None, new: dict[Address, Peer]) -> Mapping[Address, Peer]:
    """Keep the old object when nothing changed: reconcilers take the same object for no work."""
    return old if old is not None and old == new else new
