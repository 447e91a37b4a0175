"""What users may set with ``-o`` and ``driver-opt``, and what it means. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, count

from driver.wish.errors import BadRequest, Conflict
from driver.wish.model import Segment, Subnet
from driver.wish.values import MAX_VNI, TUNNEL_MTU, VXLAN_PORT, NetworkId, Vni

ENGINE_PREFIX = "com.docker.network."
"""Keys of the engine itself (moby libnetwork/netlabel); never refused."""
UNDERLAY_MTU = "com.docker.network.driver.mtu"
"""The built-in overlay's option: the MTU of the underlay, not of the containers."""
REFUSED = "pyoverlay.refused"
"""Carries a leader's refusal to the nodes: see refuse_later."""

VNI_BASE = 1 << 23
"""Derived VNIs are 2^23 and above: the built-in overlay counts up from 4096."""

_MTU = range(576, TUNNEL_MTU + 1)
_PORTS = range(1, 65536)


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """A network's options, read and checked."""

    vnis: tuple[Vni, ...] = ()
    port: int = VXLAN_PORT
    mtu: int | None = None
    underlay_mtu: int | None = None


def parse_network_options(options: Mapping[str, str], default_port: int = VXLAN_PORT) -> NetworkOptions:
    """Read the options of ``docker network create -o``; raise BadRequest for the first bad one."""
    _refuse_unknown("network option", options, ("vni", "vxlan_port", "mtu", UNDERLAY_MTU, REFUSED))
    if "mtu" in options and UNDERLAY_MTU in options:
        raise BadRequest(
            f"mtu and {UNDERLAY_MTU}: give only one: mtu is what the containers see, "
            f"{UNDERLAY_MTU} is the underlay's, as for the built-in overlay"
        )
    port = _integer(options, "vxlan_port", _PORTS, "a UDP port from 1 to 65535")
    return NetworkOptions(
        vnis=_vnis(options.get("vni", "")),
        port=default_port if port is None else port,
        mtu=_integer(options, "mtu", _MTU, "the containers' MTU in bytes, from 576 to 65485"),
        underlay_mtu=_integer(options, UNDERLAY_MTU, _MTU, "the underlay's MTU in bytes, from 576 to 65485"),
    )


def check_endpoint_options(options: Mapping[str, object]) -> None:
    """Raise BadRequest for a ``--network name=…,driver-opt=…`` that nobody here understands."""
    _refuse_unknown("endpoint option", options, ())


def check_subnets(subnets: Sequence[Subnet], *, swarm: bool) -> None:
    """Raise BadRequest for subnets that one network cannot have."""
    if not subnets:
        raise BadRequest(
            "subnet: none was given: use the default IPAM driver or --ipam-driver pyoverlay:latest, not null"
        )
    for one, other in combinations(subnets, 2):
        if one.prefix.version == other.prefix.version and one.prefix.overlaps(other.prefix):
            raise BadRequest.field(
                "subnet",
                str(other.prefix),
                f"it overlaps {one.prefix} of the same network; give distinct subnets",
            )
    for subnet in subnets:
        if subnet.prefix.prefixlen == 0:
            raise BadRequest.field(
                "subnet", str(subnet.prefix), "give a real subnet, for example 10.1.0.0/24"
            )
        if swarm and subnet.prefix.version == 6:
            raise BadRequest.field(
                "subnet",
                str(subnet.prefix),
                "Swarm's allocator gives a task one address and no IPv6 (moby#24379): use IPv4 subnets, "
                "or a stand-alone engine for IPv6",
            )


def choose_vnis(
    network: NetworkId, given: tuple[Vni, ...], segments: int, used: Collection[Vni]
) -> tuple[Vni, ...]:
    """Return a VNI per segment: the given ones, else those that every host derives from the network's id.

    Raises BadRequest when the number given is not the number of segments, Conflict when a
    given one is in *used*.
    """
    if given and len(given) != segments:
        raise BadRequest.field(
            "vni",
            ",".join(map(str, given)),
            f"the network has {segments} subnet(s): give one VNI for each; "
            "all subnets of a network with IPv4 and IPv6 share one",
        )
    if taken := [vni for vni in given if vni in used]:
        raise Conflict(
            f"vni: {taken[0]} is used by another network: choose another, or leave the choice to us; "
            "a network that the engine no longer knows gives its VNI back within a minute"
        )
    chosen: list[Vni] = list(given)
    for attempt in count():
        if len(chosen) == segments:
            return tuple(chosen)
        digest = hashlib.sha256(f"{network}/{attempt}".encode()).digest()
        vni = Vni(VNI_BASE + int.from_bytes(digest[:4]) % (MAX_VNI + 1 - VNI_BASE))
        if vni not in used and vni not in chosen:
            chosen.append(vni)
    raise AssertionError("unreachable: the loop ends when enough were found")


def segments_of(subnets: Sequence[Subnet]) -> list[tuple[Subnet, ...]]:
    """Group subnets into segments: one per subnet, or one for all where there are IPv4 and IPv6 subnets.

    An endpoint is on one segment. Its IPv4 and its IPv6 address come from any of the subnets of each family:
    the engine takes the first one that has room (moby libnetwork/endpoint.go: assignAddressVersion).
    """
    if len({subnet.prefix.version for subnet in subnets}) > 1:
        return [tuple(subnets)]
    return [(subnet,) for subnet in subnets]


def build_segments(vnis: Sequence[Vni], groups: Sequence[tuple[Subnet, ...]]) -> tuple[Segment, ...]:
    """Join VNIs and groups of subnets, in order."""
    return tuple(Segment(vni, group) for vni, group in zip(vnis, groups, strict=True))


def refuse_later(options: Mapping[str, str], reason: str) -> dict[str, str]:
    """Return an allocation that every node will refuse with *reason*.

    An error from AllocateNetwork is only logged by the Swarm leader, and tasks then wait for
    ever; a refusal on the node is what ``docker service ps`` and ``network inspect`` show.
    """
    return {**options, REFUSED: reason}


def _refuse_unknown(what: str, options: Mapping[str, object], known: Collection[str]) -> None:
    for name, value in options.items():
        if name not in known and not name.startswith(ENGINE_PREFIX):
            offer = (
                f"the known ones are {', '.join(k for k in known if k != REFUSED)}"
                if known
                else "this driver has none so far"
            )
            raise BadRequest(f"{what} {name!r} (value {value!r}) is not known: remove it; {offer}")


def _integer(options: Mapping[str, str], name: str, allowed: range, meaning: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) not in allowed:
        raise BadRequest.field(name, text, f"give {meaning}")
    return int(text)


def _vnis(text: str) -> tuple[Vni, ...]:
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not part.isascii() or not part.isdigit() or not 1 <= int(part) <= MAX_VNI:
            raise BadRequest.field(
                "vni", text, f"give a number from 1 to {MAX_VNI}, or one per subnet, separated by commas"
            )
    vnis = tuple(Vni(int(part)) for part in parts)
    if len(set(vnis)) != len(vnis):
        raise BadRequest.field("vni", text, "give every subnet a VNI of its own")
    return vnis
