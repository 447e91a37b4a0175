"""The IpamDriver methods: wire in, one call of address management, wire out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ipam.manager import AddressLease, AddressSpaces, Capabilities, PoolLease
from plugin import wire


class IpamCalls(Protocol):
    """What the edge asks of address management; `ipam.manager.AddressManager` is the real one."""

    def capabilities(self) -> Capabilities:
        """Say what the engine should do for us."""

    def default_address_spaces(self) -> AddressSpaces:
        """Name the address spaces."""

    def request_pool(
        self, space: str, pool: str, sub_pool: str, options: Mapping[str, str], v6: bool
    ) -> PoolLease:
        """Open a pool."""

    def release_pool(self, pool_id: str) -> None:
        """Close a pool."""

    def request_address(self, pool_id: str, address: str, options: Mapping[str, str]) -> AddressLease:
        """Lease an address."""

    def release_address(self, pool_id: str, address: str) -> None:
        """Take an address back."""


class IpamDriver:
    """Handlers, one for each method."""

    def __init__(self, addresses: IpamCalls) -> None:
        self._addresses = addresses

    def get_capabilities(self) -> wire.IpamCapabilities:
        """Answer what the engine should do for us."""
        found = self._addresses.capabilities()
        return wire.IpamCapabilities(
            RequiresMACAddress=found.requires_mac_address,
            RequiresRequestReplay=found.requires_request_replay,
        )

    def get_default_address_spaces(self) -> wire.AddressSpacesAnswer:
        """Answer the names of the two address spaces."""
        spaces = self._addresses.default_address_spaces()
        return wire.AddressSpacesAnswer(
            LocalDefaultAddressSpace=spaces.local_default, GlobalDefaultAddressSpace=spaces.global_default
        )

    def request_pool(self, request: wire.RequestPoolRequest) -> wire.RequestPoolAnswer:
        """Open a pool for the engine."""
        lease = self._addresses.request_pool(
            request.AddressSpace, request.Pool, request.SubPool, request.Options, request.V6
        )
        return wire.RequestPoolAnswer(PoolID=lease.pool_id, Pool=lease.prefix, Data=dict(lease.data))

    def release_pool(self, request: wire.PoolRequest) -> wire.Answer:
        """Close a pool."""
        self._addresses.release_pool(request.PoolID)
        return wire.Answer()

    def request_address(self, request: wire.RequestAddressRequest) -> wire.RequestAddressAnswer:
        """Lease an address to the engine."""
        lease = self._addresses.request_address(request.PoolID, request.Address, request.Options)
        return wire.RequestAddressAnswer(Address=lease.interface, Data=dict(lease.data))

    def release_address(self, request: wire.ReleaseAddressRequest) -> wire.Answer:
        """Take an address back."""
        self._addresses.release_address(request.PoolID, request.Address)
        return wire.Answer()
