"""Address management: pools and addresses for the engine's IpamDriver interface.

The allocator is pure (`pools`, `defaults`, `allocator`, `replay`: values in, values out, no clock,
no file, no lock); `store` keeps its one value on disk and `service` is what the edge calls.
Nothing here knows of HTTP nor of the network driver.
"""
