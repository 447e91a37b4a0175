"""etcd 3.5 as the store: its JSON gateway, one thread that reads, one that writes.

Belongs here: connections, certificates, leases, watches, and their faults.

Stays out: what is said; that is the ledger's.

A reviewer checks: every way in which a connection can end leads to another member and to a complete view;
every request has a time-out; no lock is held over input or output.
"""
