"""Balancers: virtual addresses, translated in the containers' own namespaces (ADR 10).

Belongs here: our nftables table, its netlink messages, and what connection tracking remembers.

Stays out: where an address leads; that is decided in `reconcile.balancers`.

A reviewer checks: a change is one transaction on the generation that was read; in a container's namespace
only the tables that bear our name are touched; no socket is kept open there for long.
"""
