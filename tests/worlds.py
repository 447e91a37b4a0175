"""Random worlds: what a host's kernel may be asked to hold. `walk` yields one wish after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface
from random import Random

from driver.kernel import Kernel
from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Shortcut,
    Vxlan,
)
from driver.kernel.objects import KernelObject, KernelState, Key, index
from driver.reconcile.plan import diff
from driver.wish.values import Address, Mac, Vni, bridge_mac, mac_of

NETWORKS = 3
SEGMENTS = 3
LOCALS: tuple[Address | None, ...] = (
    IPv4Address("192.0.2.1"),
    IPv4Address("192.0.2.77"),
    IPv6Address("2001:db8::1"),
    None,
)


def world(random: Random) -> dict[Key, KernelObject]:
    """Draw a wish: up to three networks of one to three segments, each network in its namespace.

    VNIs move between networks from one world to the next, so that the order of changes matters.
    """
    vnis = [Vni(n) for n in random.sample(range(100, 124), NETWORKS * SEGMENTS)]
    networks = random.sample(range(NETWORKS), random.randint(0, NETWORKS))
    return index([obj for number in networks for obj in _network(random, number, vnis)])


def walk(seed: int, steps: int) -> Iterator[dict[Key, KernelObject]]:
    """Yield *steps* wishes; what was made is kept as "the engine has its container end" at times."""
    random = Random(seed)
    before: dict[Key, KernelObject] = {}
    for _ in range(steps):
        wish = world(random)
        for key, obj in wish.items():
            if isinstance(obj, Port) and key in before and random.random() < 0.5:
                wish[key] = replace(obj, create=False)
        yield wish
        before = wish


def converge(kernel: Kernel, want: KernelState, rounds: int = 3) -> dict[Key, KernelObject]:
    """Do as the engine does, read, diff, apply, at most *rounds* times; return what is there then."""
    for _ in range(rounds):
        ops = diff(want, everything(kernel, want))
        if not ops:
            break
        kernel.apply(ops)
    return everything(kernel, want)


def everything(kernel: Kernel, want: KernelState) -> dict[Key, KernelObject]:
    """Read all namespaces, those of *want* and those that are there."""
    names = {key.place for key in want} | set(kernel.namespaces())
    return {key: obj for name in names for key, obj in kernel.read_place(name).items()}


def _network(random: Random, number: int, vnis: list[Vni]) -> list[KernelObject]:
    namespace = f"pyoverlay-w{number}"
    found: list[KernelObject] = [Namespace(namespace)]
    local = random.choice(LOCALS)
    for segment in range(random.randint(1, SEGMENTS)):
        found += _segment(random, number, segment, vnis.pop(), local)
    return found


def _segment(
    random: Random, number: int, segment: int, vni: Vni, local: Address | None
) -> list[KernelObject]:
    namespace, bridge, vxlan = f"pyoverlay-w{number}", f"br{segment}", f"vx{segment}"
    prefix4, prefix6 = f"10.{number}.{segment}", f"fd00:{number}:{segment}:"
    mtu = random.choice((1280, 1450, 1500, 8950))
    mac = bridge_mac(f"{random.randrange(2)} {number} {segment}")
    alias = f"pyoverlay network {number}, VNI {vni}"
    found: list[KernelObject] = [
        Bridge(namespace, bridge, mac, mtu, alias),
        Vxlan(namespace, vxlan, vni, random.choice((4789, 4790)), local, bridge, alias),
    ]
    gateways = [f"{prefix4}.1/24", f"{prefix6}:1/64"]
    chosen = random.sample(gateways, random.randint(0, 2))
    found += [BridgeAddress(namespace, bridge, ip_interface(gateway)) for gateway in chosen]
    for port in random.sample(range(4), random.randint(0, 3)):
        peer = f"c{number}{segment}{port}"
        peer_mac = mac_of(IPv4Address(f"{prefix4}.{10 + port}"))
        found.append(Port(namespace, f"p{segment}{port}", bridge, f"pyoverlay {peer}", peer, peer_mac, mtu))
        if random.random() < 0.8:
            found.append(Shortcut(namespace, vxlan, peer_mac, f"p{segment}{port}"))
    for host in random.sample(range(100, 108), random.randint(0, 6)):
        addresses: list[Address] = [IPv4Address(f"{prefix4}.{host}"), IPv6Address(f"{prefix6}:{host}")]
        owner = mac_of(addresses[0])
        found.append(FdbEntry(namespace, vxlan, owner, _vtep(random, local)))
        known = random.sample(addresses, random.randint(1, 2))
        found += [Neighbour(namespace, vxlan, address, _owner(random, owner)) for address in known]
    found += [
        FdbEntry(namespace, vxlan, FLOOD_MAC, _vtep(random, local)) for _ in range(random.randint(0, 3))
    ]
    return found


def _vtep(random: Random, local: Address | None) -> Address:
    host = random.randint(2, 6)
    return (
        IPv6Address(f"2001:db8::{host}") if isinstance(local, IPv6Address) else IPv4Address(f"192.0.2.{host}")
    )


def _owner(random: Random, mac: Mac) -> Mac:
    """Mostly *mac*; at times an address has moved to another endpoint."""
    return mac if random.random() < 0.9 else Mac("02:42:ff:00:00:01")
