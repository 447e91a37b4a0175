"""What may be forgotten of other hosts, and when."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from driver.wish.model import Peer, Peers
from driver.wish.peers import GRACE, adopt, merge, overdue, settle, too_many_stale
from driver.wish.records import EndpointRecord, NodeRecord, View
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId

ME, A, B, C = (NodeId(n) for n in ("me", "a", "b", "c"))
NET, OTHER = NetworkId("net"), NetworkId("other")
VTEP = {node: ip_address(f"192.0.2.{i}") for i, node in enumerate((ME, A, B, C), 1)}


def record(address: str, node: NodeId, network: NetworkId = NET) -> EndpointRecord:
    last = int(address.rsplit(".", 1)[1])
    return EndpointRecord(
        network,
        ip_address(address),
        Mac(f"02:42:0a:00:00:{last:02x}"),
        node,
        EndpointId(f"ep{address}{node}"),
    )


def view(*records: EndpointRecord, nodes: tuple[NodeId, ...] = (ME, A, B, C), connected: bool = True) -> View:
    table = {r.address: r for r in records}
    return View(connected, {n: NodeRecord(n, VTEP[n]) for n in nodes}, {NET: table})


def step(peers: Peers, seen: View, now: float = 0.0) -> Peers:
    return merge(peers, seen, ME, [NET], now)


def where(peers: Peers) -> dict[str, NodeId]:
    return {str(address): peer.node for address, peer in peers.entries.get(NET, {}).items()}


FULL = view(record("10.0.0.1", ME), record("10.0.0.2", A), record("10.0.0.3", B), record("10.0.0.4", C))


def test_the_highest_number_of_a_claim_is_remembered() -> None:
    seen = view(replace(record("10.0.0.2", A), claimed=7), record("10.0.0.3", B))
    assert step(Peers(), seen).latest == 7
    assert step(step(Peers(), seen), view(record("10.0.0.3", B))).latest == 7
    assert merge(step(Peers(), seen), View(connected=False), ME, [], 0).latest == 7


def test_others_endpoints_are_peers_and_own_ones_are_not() -> None:
    peers = step(Peers(), FULL)
    assert where(peers) == {"10.0.0.2": A, "10.0.0.3": B, "10.0.0.4": C}
    assert peers.entries[NET][ip_address("10.0.0.2")].vtep == VTEP[A]
    assert peers.synced == {NET}


def test_what_a_present_node_does_not_list_is_gone_at_once() -> None:
    peers = step(step(Peers(), FULL), view(record("10.0.0.3", B), record("10.0.0.4", C)))
    assert where(peers) == {"10.0.0.3": B, "10.0.0.4": C}


def test_a_missing_nodes_rows_stay_for_the_grace_and_go_after_it() -> None:
    peers = step(Peers(), FULL)
    gone = view(record("10.0.0.3", B), record("10.0.0.4", C), nodes=(ME, B, C))
    peers = step(peers, gone, now=100)
    assert where(peers)["10.0.0.2"] == A
    peers = step(peers, gone, now=100 + GRACE - 0.1)
    assert overdue(peers, 100 + GRACE - 0.1) == set()
    assert settle(peers, [], 100 + GRACE - 0.1) == peers
    assert overdue(peers, 100 + GRACE) == {VTEP[A]}
    buried = settle(peers, [], 100 + GRACE)
    assert where(buried) == {"10.0.0.3": B, "10.0.0.4": C}
    assert A not in buried.nodes
    assert where(step(buried, view(*FULL.endpoints[NET].values(), nodes=(ME, B, C)), 200)) == where(buried)


def test_the_rows_of_a_host_that_answers_stay() -> None:
    gone = view(record("10.0.0.3", B), record("10.0.0.4", C), nodes=(ME, B, C))
    peers = step(step(Peers(), FULL), gone, now=0)
    kept = settle(peers, [VTEP[A]], GRACE)
    assert where(kept)["10.0.0.2"] == A
    assert kept.entries[NET] is peers.entries[NET]
    assert overdue(kept, 2 * GRACE - 1) == set()
    assert overdue(kept, 2 * GRACE) == {VTEP[A]}
    assert "10.0.0.2" not in where(settle(kept, [], 2 * GRACE))


def test_records_of_a_node_that_went_stale_still_count_while_in_the_store() -> None:
    missing = view(*FULL.endpoints[NET].values(), nodes=(ME, B, C))
    peers = step(step(Peers(), FULL), missing, now=1)
    assert where(peers) == {"10.0.0.2": A, "10.0.0.3": B, "10.0.0.4": C}


def test_records_of_a_node_never_seen_are_not_used() -> None:
    assert where(step(Peers(), view(record("10.0.0.2", A), nodes=(ME,)))) == {}


def test_an_address_that_another_node_claims_moves_at_once() -> None:
    peers = step(step(Peers(), FULL), view(record("10.0.0.2", B), nodes=(ME, B, C)), now=1)
    assert where(peers)["10.0.0.2"] == B
    assert peers.entries[NET][ip_address("10.0.0.2")].vtep == VTEP[B]


def test_a_new_empty_store_removes_nothing() -> None:
    peers = step(Peers(), FULL)
    empty = View(True, {ME: NodeRecord(ME, VTEP[ME])}, {NET: {}})
    later = step(step(peers, empty, now=0), empty, now=10 * GRACE)
    assert overdue(later, 20 * GRACE) == set()
    assert where(later) == where(peers)
    assert too_many_stale(later)
    back = step(later, FULL, now=11 * GRACE)
    assert where(back) == where(peers)
    assert not too_many_stale(back)


def test_while_the_store_is_away_nothing_changes() -> None:
    peers = step(Peers(), FULL)
    assert step(peers, View(False), now=10 * GRACE) == peers


def test_networks_no_longer_followed_are_dropped_even_while_away() -> None:
    peers = step(Peers(), FULL)
    assert merge(peers, View(False), ME, [OTHER], 0).entries == {}


def test_unchanged_entries_keep_their_identity() -> None:
    peers = step(Peers(), FULL)
    assert step(peers, FULL, now=5).entries[NET] is peers.entries[NET]


def test_a_node_with_a_new_address_takes_its_rows_along() -> None:
    moved = View(True, {**FULL.nodes, A: NodeRecord(A, ip_address("192.0.2.99"))}, FULL.endpoints)
    peers = step(step(Peers(), FULL), moved)
    assert peers.entries[NET][ip_address("10.0.0.2")].vtep == ip_address("192.0.2.99")


def test_adopted_rows_stay_until_their_host_speaks() -> None:
    """After a restart the kernel knows more than we do; the VTEP tells whose a row is."""
    address = ip_address("10.0.0.2")
    rows = {
        address: Peer(Mac("02:42:0a:00:00:02"), VTEP[A], NodeId("")),
        ip_address("10.0.0.9"): Peer(Mac("02:42:0a:00:00:09"), VTEP[B], NodeId("")),
    }
    adopted = adopt(Peers(), NET, rows, now=0)
    only_b = step(adopted, view(record("10.0.0.3", B), nodes=(ME, B)), now=1)
    assert set(where(only_b)) == {"10.0.0.2", "10.0.0.3"}
    both = step(only_b, view(record("10.0.0.3", B), record("10.0.0.5", A), nodes=(ME, A, B)), now=2)
    assert where(both) == {"10.0.0.3": B, "10.0.0.5": A}


def test_adopted_rows_of_a_host_that_never_speaks_go_after_the_grace() -> None:
    rows = {ip_address("10.0.0.2"): Peer(Mac("02:42:0a:00:00:02"), VTEP[A], NodeId(""))}
    adopted = adopt(Peers(), NET, rows, now=0)
    seen = view(nodes=(ME, B))
    held = step(adopted, seen, now=1)
    assert overdue(held, GRACE) == {VTEP[A]}
    assert where(settle(held, [], GRACE)) == {}


def test_who_is_missing_still_when_most_are_back_gets_a_whole_grace() -> None:
    """They come back one after another, and none of them may lose its rows to the order."""
    seen = view(*FULL.endpoints[NET].values(), nodes=(ME,))
    peers = step(step(Peers(), FULL), seen, now=0)
    back = 2 * GRACE
    peers = step(peers, view(*FULL.endpoints[NET].values(), nodes=(ME, A)), now=back)
    peers = step(peers, view(*FULL.endpoints[NET].values(), nodes=(ME, A, B)), now=back + 1)
    assert where(peers) == {"10.0.0.2": A, "10.0.0.3": B, "10.0.0.4": C}
    assert overdue(peers, back + GRACE) == set()
    assert overdue(peers, back + 1 + GRACE) == {VTEP[C]}


def test_adopted_rows_stay_while_the_store_has_their_records_but_not_their_node() -> None:
    rows = {ip_address("10.0.0.2"): Peer(Mac("02:42:0a:00:00:02"), VTEP[A], NodeId(""))}
    adopted = adopt(Peers(), NET, rows, now=0)
    seen = view(record("10.0.0.2", A), nodes=(ME, B))
    held = step(adopted, seen, now=1)
    assert where(held) == {"10.0.0.2": NodeId(f"vtep {VTEP[A]}")}
    assert where(step(held, view(record("10.0.0.2", A), nodes=(ME, A, B)), now=2)) == {"10.0.0.2": A}
    assert where(settle(held, [], GRACE)) == {}


def test_only_who_was_overdue_when_asked_is_dropped_and_nobody_while_most_are_missing() -> None:
    one = step(step(Peers(), FULL), view(*FULL.endpoints[NET].values(), nodes=(ME, B, C)), now=0)
    asked_at = GRACE
    two = step(one, view(*FULL.endpoints[NET].values(), nodes=(ME, C)), now=asked_at + 1)
    assert too_many_stale(two)
    assert settle(two, [], asked_at) == two


def test_a_former_installation_on_this_host_is_no_other_host() -> None:
    """Its records are in the store for an hour, and its rows are in the kernel."""
    former, own = NodeId("former"), VTEP[ME]
    rows = {ip_address("10.0.0.7"): Peer(Mac("02:42:0a:00:00:07"), own, NodeId(""))}
    adopted = adopt(step(Peers(), FULL), NET, rows, now=0)
    records = [*FULL.endpoints[NET].values(), record("10.0.0.8", former)]
    seen = replace(view(*records), nodes={**FULL.nodes, former: NodeRecord(former, own)})
    merged = merge(adopted, seen, ME, [NET], 1, own_vtep=own)
    assert where(merged) == {"10.0.0.2": A, "10.0.0.3": B, "10.0.0.4": C}
    assert merged.nodes.keys() == {A, B, C}
    hour_later = merge(merged, view(*records), ME, [NET], 3600, own_vtep=own)
    assert where(hour_later) == where(merged)
    assert overdue(hour_later, 4000) == set()


def test_an_address_that_a_former_installation_here_claims_is_not_sent_to_others() -> None:
    former, own = NodeId("former"), VTEP[ME]
    gone = view(record("10.0.0.2", former), record("10.0.0.3", B), nodes=(ME, B, C))
    seen = replace(gone, nodes={**gone.nodes, former: NodeRecord(former, own)})
    assert where(merge(step(Peers(), FULL), seen, ME, [NET], 1, own_vtep=own)) == {"10.0.0.3": B}


def test_what_was_learnt_before_this_hosts_address_was_known_goes_with_it() -> None:
    former, own = NodeId("former"), VTEP[ME]
    seen = View(
        True, {former: NodeRecord(former, own)}, {NET: {ip_address("10.0.0.8"): record("10.0.0.8", former)}}
    )
    early = merge(Peers(), seen, ME, [NET], 0)
    assert where(early) == {"10.0.0.8": former}
    assert where(merge(early, seen, ME, [NET], 1, own_vtep=own)) == {}
