"""The ledger: what is said to a store, and what is concluded from its answers. Pure.

Belongs here: the names of keys and the form of values (`codec`), what the store holds for us (`table`), what
of ours it should hold (`claims`), and the two together (`ledger`); records that nobody keeps (`orphans`).

Stays out: threads, sockets, clocks, and which product the store is.

A reviewer checks: nothing is remembered of what was sent, only of what the store said, as of a revision; a
reader bears fields and records that it does not know.
"""
