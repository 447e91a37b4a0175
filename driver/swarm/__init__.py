"""What a Docker Swarm provides: who manages and leads it, its services, certificates to trust.

Belongs here: questions to the engine's API, the etcd that the leader runs, and what the leader says about
services.

Stays out: anything that a driver call would have to wait for. The engine waits for our answer and cannot
give one in the meantime. The exception is a call about a network whose record was lost: it waits for
`recovery`, for a while.

A reviewer checks: while the engine is away, everything continues with its last known answer.
"""
