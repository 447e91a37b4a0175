"""The driver: what an engine may ask of an overlay, and everything that carries it out on this host.

`overlay` holds the use cases. They change the wish (`wish/`) and wait; everything else follows from that:
the reconcilers (`reconcile/`) make the kernel (`kernel/`) equal to the wish, and the hosts of a cluster
(`cluster/`) tell each other what they have; `swarm/` is what a Swarm adds.

Nothing here knows HTTP, Flask or pydantic: the edge parses, and hands over values. Nothing here knows the
IPAM driver.
"""
