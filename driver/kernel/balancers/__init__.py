"""Balancers: virtual addresses, translated in the containers' own namespaces (ADR 10).

Belongs here: our table of nftables, its netlink messages, and what connection tracking remembers.

Stays out: where an address leads; that is decided in `reconcile.balancers`.

A reviewer checks: a change is one transaction on the generation that was read; nothing in a container's
namespace is touched but the tables that bear our name; no socket is kept open there for long.
"""
