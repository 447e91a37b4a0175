"""The control plane: how hosts tell each other where containers are.

Both directions carry whole values, never changes: a host says all that it has
(Publication), and is told all that the others have (View). So the caller never has to
deal with what became of an earlier call, with a lost event or with a restarted store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from driver.wish.records import Publication, View
from driver.wish.values import EndpointId, NetworkId
from lib.supervised import Supervised


class ControlPlane(Protocol):
    """A store shared by hosts. Every back end passes tests/cluster/test_contract.py."""

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads of the back end, so that their state can be read."""

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; *on_view* gets every new view, in order, from one thread of the back end."""

    def publish(self, publication: Publication) -> None:
        """Replace what this host says; returns at once. The back end works until the store agrees with it.

        A record of ours that another host has overwritten is left to that host, and restored when it
        withdraws; a record that the store lost is written again.
        """

    def wait_published(self, timeout: float) -> bool:
        """Wait until the store holds the latest publication and every followed network was read.

        *timeout* is in seconds. Returns False when time ran out; while the store is away it
        returns False at once, because waiting would not help.
        """

    def wait_announced(self, network: NetworkId, endpoint: EndpointId, timeout: float) -> bool:
        """Wait, as above, until others can know of *endpoint*, and this host what they have in *network*.

        Whatever else is still to be published or read is not waited for.
        """

    def stop(self, *, leave: bool) -> None:
        """End. First bring out what was published last, or with *leave* withdraw everything of ours.

        Both are bounded to a few seconds, and left undone while the store is away.
        """
