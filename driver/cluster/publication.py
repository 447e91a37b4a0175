"""From the wish to what this host tells the others. Pure."""

from __future__ import annotations

from driver.wish.records import EndpointRecord, NodeRecord, Publication
from driver.wish.state import State
from driver.wish.values import is_of_a_host


def publication(state: State) -> Publication:
    """Return what this host tells the others: its VTEP and every endpoint that may receive.

    Nothing without an address at which they reach it.
    """
    host = state.host
    # An address has one record; the newest claim wins, and endpoints are in order of age.
    claims = {
        (e.network, interface.ip): EndpointRecord(e.network, interface.ip, e.mac, host.id, e.id, e.claimed)
        for e in state.receivers()
        for interface in e.interfaces
    }
    node = NodeRecord(host.id, host.vtep, state.mtu) if host.vtep and is_of_a_host(host.vtep) else None
    endpoints = frozenset(claims.values()) if node else frozenset()
    return Publication(node, endpoints, frozenset(state.networks), state.offer)
