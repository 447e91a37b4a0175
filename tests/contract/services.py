"""Stand-ins for the two services: they keep what they were asked and answer something plausible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from driver.overlay import Attachment, Route
from driver.wish.model import Subnet
from driver.wish.values import Address, Interface, Mac, mac_of
from ipam.manager import AddressLease, AddressSpaces, Capabilities, PoolLease


class FakeNetworks:
    """A network service without networks. *fail* is raised by every call; *calls* are (name, arguments)."""

    def __init__(self, fail: Exception | None = None, scope: str = "global") -> None:
        self.scope = scope
        self.calls: list[tuple[Any, ...]] = []
        self.fail = fail
        self.subnets: dict[str, Sequence[Subnet]] = {}

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.fail:
            raise self.fail

    def allocate_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet]
    ) -> Mapping[str, str]:
        self._note("allocate_network", network, options, subnets)
        return {**options, "vni": options.get("vni", "70001")}

    def free_network(self, network: str) -> None:
        self._note("free_network", network)

    def check_network(self, options: Mapping[str, str]) -> None:
        self._note("check_network", options)

    def create_network(
        self, network: str, options: Mapping[str, str], subnets: Sequence[Subnet], *, internal: bool
    ) -> None:
        self._note("create_network", network, options, subnets, internal)
        self.subnets[network] = subnets

    def delete_network(self, network: str) -> None:
        self._note("delete_network", network)

    def create_endpoint(
        self,
        network: str,
        endpoint: str,
        interfaces: Sequence[Interface],
        mac: Mac | None,
        options: Mapping[str, object],
    ) -> Mac | None:
        self._note("create_endpoint", network, endpoint, interfaces, mac, options)
        return mac_of(interfaces[0].ip) if interfaces and not mac else None

    def delete_endpoint(self, network: str, endpoint: str) -> None:
        self._note("delete_endpoint", network, endpoint)

    def join(self, network: str, endpoint: str, sandbox: str) -> Attachment:
        self._note("join", network, endpoint, sandbox)
        others = self.subnets.get(network, ())[1:]
        return Attachment(
            f"pyo{endpoint[:12]}", tuple(Route(s.prefix, s.gateway) for s in others if s.gateway)
        )

    def leave(self, network: str, endpoint: str) -> None:
        self._note("leave", network, endpoint)

    def node_discovered(self, address: Address, *, is_self: bool) -> None:
        self._note("node_discovered", address, is_self)

    def node_lost(self, address: Address) -> None:
        self._note("node_lost", address)


class FakeAddresses:
    """An address service of one pool a family; *fail* and *calls* as above."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail = fail
        self._given = 1

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.fail:
            raise self.fail

    def capabilities(self) -> Capabilities:
        self._note("capabilities")
        return Capabilities()

    def default_address_spaces(self) -> AddressSpaces:
        self._note("default_address_spaces")
        return AddressSpaces()

    def request_pool(
        self, space: str, pool: str, sub_pool: str, options: Mapping[str, str], v6: bool
    ) -> PoolLease:
        self._note("request_pool", space, pool, sub_pool, options, v6)
        prefix = ip_network(pool or ("fd00:1::/64" if v6 else "10.1.0.0/24"), strict=False)
        return PoolLease(str(prefix), prefix)

    def release_pool(self, pool_id: str) -> None:
        self._note("release_pool", pool_id)

    def request_address(self, pool_id: str, address: str, options: Mapping[str, str]) -> AddressLease:
        self._note("request_address", pool_id, address, options)
        pool = ip_network(pool_id)
        self._given += 1
        chosen = ip_address(address) if address else pool[self._given]
        return AddressLease(ip_interface(f"{chosen}/{pool.prefixlen}"))

    def release_address(self, pool_id: str, address: str) -> None:
        self._note("release_address", pool_id, address)
