"""The services of one network in a container's own namespace. Pure: `balancers.sandboxes` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from driver.kernel.objects import KernelObject, Key, Kind
from driver.wish.values import Address

Services: TypeAlias = Mapping[Address, tuple[Address, ...]]
"""Virtual addresses and the backends of each, in order."""


@dataclass(frozen=True, slots=True)
class Balancer(KernelObject):
    """The services of one network in a container's own namespace: NAT for what it sends and forwards.

    Connections to a virtual address go to its backends in turn; where there is none they are refused.
    Ours are tables of nftables that are named as our namespaces.
    """

    kind: ClassVar = Kind(80, "table")
    module: ClassVar = "nft_chain_nat nft_ct nft_nat nft_numgen nft_reject_ipv4"

    sandbox: str
    """The container's namespace, by the path that the engine gave."""
    namespace: str
    """The network's, whose name the table bears."""
    services: Services
    turn: int = field(default=0, compare=False)
    """With which backend to begin: not all containers with the same one."""
    sound: bool = True

    @property
    def key(self) -> Key:
        """Identity: sandbox and network."""
        return Key(self.kind, self.sandbox, self.namespace)

    @property
    def label(self) -> str:
        """The table, and where."""
        return f"table {self.namespace} in {self.sandbox}"

    @property
    def description(self) -> str:
        """The table as "nft list tables" shows it, and where."""
        return f"table ip {self.namespace} in {self.sandbox}"

    def deviation(self, have: KernelObject | None) -> str:
        """Say that it was changed: a list of services would fill pages."""
        return f"{self.label} was {'gone' if have is None else 'changed'}"
