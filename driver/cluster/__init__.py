"""The cluster: what hosts tell each other, and how it reaches them.

Belongs here: `peering`, which says what this host has and takes in what the others say; the Protocol of a
control plane (`backend`) and its back ends: in memory for a host that is alone, etcd for all others.

Stays out: the kernel. What the others say becomes part of the wish, and only that.

A reviewer checks: whole values go both ways, never changes; silence is not emptiness (ADR 11): nothing is
forgotten just because nobody answers; a host writes its own records and no others.
"""
