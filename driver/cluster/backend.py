"""The control plane: how hosts tell each other where containers are.

Both directions carry whole values, never changes: a host says all that it has
(Publication), and is told all that the others have (View). What became of an earlier
call, a lost event or a restarted store is thereby never the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from driver.wish.records import Publication, View
from lib.supervised import Supervised


class ControlPlane(Protocol):
    """A store shared by hosts. Every back end passes tests/cluster/test_contract.py."""

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads of the back end, for those who want to know how they fare."""

    def start(self, on_view: Callable[[View], None]) -> None:
        """Begin; *on_view* gets every new view, in order, from one thread of the back end."""

    def publish(self, publication: Publication) -> None:
        """Replace what this host says; returns at once. The back end works until the store agrees with it.

        A record of ours that another host has overwritten is left to it, and put back when
        that host withdraws; a record that the store lost is put again.
        """

    def wait_published(self, timeout: float) -> bool:
        """Wait until the store holds the latest publication and every followed network was read.

        *timeout* is in seconds. Returns False when time ran out; while the store is away it
        returns False at once, because waiting would help nobody.
        """

    def stop(self, *, leave: bool) -> None:
        """End, once the latest publication is out. With *leave*, first withdraw everything of ours.

        The store is waited for a few seconds at most, for half a second if we do not leave.
        """
