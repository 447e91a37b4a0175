"""The ledger: what we tell the store, and what we conclude from its answers. Pure.

Belongs here: the names of keys and the form of values (`codec`), what the store holds for us (`table`), what
of ours it should hold (`claims`), and the two together (`ledger`); records whose host is gone (`orphans`).

Stays out: threads, sockets, clocks, and which product the store is.

A reviewer checks: nothing is remembered of what was sent, only what the store said, as of a revision; a
reader tolerates fields and records that it does not know.
"""
