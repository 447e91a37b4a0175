"""Netlink: sockets, messages, and what they say about devices, rows, addresses and routes.

Belongs here: bytes to values and back, one socket's conversation, the multicast groups.

Stays out: what this host should have, and in which order to get there. A function here does one thing to
one namespace, whose socket it is given.

A reviewer checks: pyroute2 is imported by `messages` alone; every number has its name in `numbers`; sizes
that the kernel bounds (64 KiB an attribute, 32 KiB an answer) are bounded here too.
"""
