"""What the reading and the writing thread of the etcd back end share, under one lock."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

from driver.cluster.etcd.client import Watch
from driver.cluster.ledger.ledger import Ledger
from driver.wish.records import Publication, View
from driver.wish.values import NetworkId, NodeId


@dataclass(slots=True, eq=False)
class Link:
    """A member of the store that we are connected to."""

    url: str
    version: object
    """The version of the credentials used for the connection."""
    served: bool = False
    """Whether all that we follow was read over it."""
    watch: Watch | None = None
    broken: str = ""
    """Why the link can no longer be used."""

    def fail(self, reason: str) -> None:
        """Give the link up; its reader notices at once. The exchange's lock must be held."""
        self.broken = self.broken or reason
        self.interrupt()

    def interrupt(self) -> None:
        """Make the reader check which scopes to follow. The exchange's lock must be held."""
        if self.watch is not None:
            self.watch.interrupt()


class Exchange:
    """The fields may be touched only while *changed* is held; every change of them is notified."""

    def __init__(self, node: NodeId) -> None:
        self.changed = threading.Condition()
        self.ledger = Ledger(node)
        self.publication = Publication()
        self.link: Link | None = None
        """The member in use, once its first snapshot has been read; None while the store is away."""
        self.lease = 0
        self.told = View()
        """The view passed on last."""
        self.stopping = False

    def publish(self, publication: Publication) -> None:
        """Replace what this host says; wake the writer, and the reader if there is more to follow."""
        with self.changed:
            self.publication = publication
            self.ledger.set_publication(publication)
            if self.link is not None and self.ledger.unread():
                self.link.interrupt()
            self.changed.notify_all()

    def settled(self) -> bool:
        """Tell whether the store holds our publication, and the view passed on has all that we follow."""
        told = self.told.connected and self.publication.networks <= self.told.endpoints.keys()
        return told and self.ledger.settled(self.lease)

    def announced(self, network: NetworkId, keys: Collection[str]) -> bool:
        """Tell whether the store holds our records with *keys*, and the user was told of *network*."""
        told = self.told.connected and network in self.told.endpoints
        return told and self.ledger.announced(keys)

    def fail(self, link: Link, reason: str) -> None:
        """Give *link* up, if it is still the one in use."""
        with self.changed:
            if self.link is link:
                link.fail(reason)

    def stop(self) -> None:
        """Wake both threads for the last time."""
        with self.changed:
            self.stopping = True
            if self.link is not None:
                self.link.fail("stopping")
            self.changed.notify_all()
