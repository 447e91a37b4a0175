"""What a Docker Swarm gives: who manages and leads it, its services, certificates to trust.

Belongs here: questions to the engine's API, the etcd that the leader runs, and what the leader says of
services.

Stays out: anything that a driver call would have to wait for. The engine waits for our answer and cannot
give one meanwhile.

A reviewer checks: everything goes on with the last known answer while the engine is away.
"""
