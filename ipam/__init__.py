"""Address management: pools and addresses for the engine's IpamDriver interface.

Belongs here: what the engine's six calls mean. The core is pure (`pools`, `addresses`, `parse`, `defaults`,
`allocator`, `replay`: values in, values out, no clock, no file, no lock); `disk` keeps its one value in a
file, and `manager` is what the edge calls.

Stays out: HTTP, and the network driver; whether an address lives on this host is asked through `InUse`.

A reviewer checks: no address has two owners; a lease is on disk before it is answered; whatever the engine
repeats is answered again; what it releases is free even when the disk is full.
"""
