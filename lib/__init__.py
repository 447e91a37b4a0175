"""What the driver and IPAM have in common: how our processes treat their files and threads.

Belongs here: mechanisms that would be right for any daemon, and that both packages need.

Stays out: anything about networks, addresses or engines.

A reviewer checks: nothing here imports a package of ours.
"""
