"""What an engine says from a network's creation to its removal, and what it says when a call failed.

The orders are the engine's own (moby daemon/libnetwork: controller.go, network.go, endpoint.go, sandbox.go).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NETWORK = "u4m9hzge31tsafr3nembuizn6"
SECOND = "k2q8fz0d7wxbnmc5rjt1vplya"
BESIDE = "aaaa" + "0" * 60
FIRST = "bbbb" + "0" * 60
NEXT = "cccc" + "0" * 60
PREFIX = "10.62.0.0/24"
GATEWAY = "10.62.0.1"
ADDRESS = "10.62.0.4"
NEIGHBOUR = "10.62.0.3"
_SPACE = "pyoverlay-local"
_POOL = f"{_SPACE}/{PREFIX}"

TAKE, GIVE_BACK = "take", "give back"
"""What the engine does itself: it moves the container end into the sandbox, and back."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call, or one deed of the engine's."""

    method: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """How people call it."""
        return self.method.rpartition(".")[2]

    @property
    def endpoint(self) -> str:
        """The endpoint that it is about, if any."""
        return str(self.body.get("EndpointID", ""))


def _network(name: str, network: str, **more: Any) -> Step:
    return Step(f"NetworkDriver.{name}", {"NetworkID": network, **more})


def _endpoint(name: str, network: str, endpoint: str, **more: Any) -> Step:
    method = name if name in (TAKE, GIVE_BACK) else f"NetworkDriver.{name}"
    return Step(method, {"NetworkID": network, "EndpointID": endpoint, **more})


def open_pool() -> list[Step]:
    body = {"AddressSpace": _SPACE, "Pool": PREFIX, "SubPool": "", "Options": {}, "V6": False}
    return [Step("IpamDriver.RequestPool", body), lease(GATEWAY, gateway=True)]


def lease(address: str, *, gateway: bool = False) -> Step:
    options = {"RequestAddressType": "com.docker.network.gateway"} if gateway else {}
    return Step("IpamDriver.RequestAddress", {"PoolID": _POOL, "Address": address, "Options": options})


def release(address: str) -> Step:
    return Step("IpamDriver.ReleaseAddress", {"PoolID": _POOL, "Address": address})


def close_pool() -> list[Step]:
    return [release(GATEWAY), Step("IpamDriver.ReleasePool", {"PoolID": _POOL})]


def create(network: str) -> list[Step]:
    data = [{"AddressSpace": _SPACE, "Gateway": f"{GATEWAY}/24", "Pool": PREFIX, "AuxAddresses": None}]
    options = {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {"vni": "70001"}}
    return [*open_pool(), _network("CreateNetwork", network, Options=options, IPv4Data=data, IPv6Data=[])]


def remove(network: str) -> list[Step]:
    return [*close_pool(), _network("DeleteNetwork", network)]


def attach(network: str, endpoint: str, address: str) -> list[Step]:
    interface = {"Address": f"{address}/24", "AddressIPv6": "", "MacAddress": ""}
    return [
        lease(address),
        _endpoint("CreateEndpoint", network, endpoint, Interface=interface, Options={}),
        _endpoint("Join", network, endpoint, SandboxKey="/run/docker/netns/x", Options={}),
        _endpoint(TAKE, network, endpoint),
    ]


def detach(network: str, endpoint: str, address: str) -> list[Step]:
    return [
        _endpoint("Leave", network, endpoint),
        _endpoint(GIVE_BACK, network, endpoint),
        _endpoint("DeleteEndpoint", network, endpoint),
        release(address),
    ]


def life(network: str, endpoint: str, *, beside: bool = False) -> list[Step]:
    """A network's whole life with one container in it; *beside* another that is there all the time."""
    return [
        *create(network),
        *(attach(network, BESIDE, NEIGHBOUR) if beside else ()),
        *attach(network, endpoint, ADDRESS),
        *detach(network, endpoint, ADDRESS),
        *(detach(network, BESIDE, NEIGHBOUR) if beside else ()),
        *remove(network),
    ]


def after_failure(story: list[Step], failed: int, *, modern: bool) -> tuple[list[Step], int]:
    """Return the engine's own clean-up after the call number *failed* went wrong, and what that equals.

    The second value is the length of the beginning of *story* that leaves the same things behind.
    A *modern* engine (29 and newer) calls Leave after a failed Join.
    """
    names = [step.name for step in story]
    container = next(i for i, step in enumerate(story) if step.endpoint == FIRST) - 1
    gone = container + len(attach("", "", "")) + len(detach("", "", ""))
    match names[failed]:
        case "RequestPool" | "CreateNetwork":
            steps, equals = close_pool(), 0
        case "RequestAddress" if failed < container:
            steps, equals = close_pool(), 0
        case "RequestAddress" | "CreateEndpoint":
            steps, equals = [release(ADDRESS)], container  # after the first it is the user's next try
        case "Join":
            leave, _, *rest = detach(NETWORK, FIRST, ADDRESS)
            steps, equals = [*([leave] if modern else []), *rest], container
        case "Leave" | "DeleteEndpoint" | "ReleaseAddress" if failed < gone:
            steps, equals = story[failed + 1 : gone], gone
        case _:
            steps, equals = story[failed + 1 :], len(story)
    return steps, equals


def next_round(story: list[Step], equals: int) -> list[Step]:
    """Return what a user does after that: the same again, by new names where the old ones are gone."""
    if equals in (0, len(story)):
        return life(SECOND, NEXT)
    attached = [*attach(NETWORK, NEXT, ADDRESS), *detach(NETWORK, NEXT, ADDRESS)]
    gone = next(i for i, s in enumerate(story) if s.name == "DeleteEndpoint" and s.endpoint == FIRST) + 2
    return [*attached, *story[gone:]]
