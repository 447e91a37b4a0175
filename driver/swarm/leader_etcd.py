"""The store of a Swarm: the Swarm's leader runs it, all other nodes find it.

The managers' addresses are in the Swarm's folder, or the engine says them. One thread asks the
engine; on managers it also looks, every second, who leads, and starts or stops the etcd of this host
accordingly. When the engine cannot tell (it restarts, the managers have no quorum) everything stays as it
is, unless another manager serves: then the Swarm has a leader, and it is not us. Two stores at a time would
part the nodes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from driver.cluster.etcd.tls import TlsSessions
from driver.swarm.docker_api import DockerApi, EngineAway, Leadership, SwarmFacts
from driver.swarm.etcd_process import EtcdSettings, bracket, loopback, serves
from driver.swarm.supervisor import Supervisor
from lib.supervised import Supervised

log = logging.getLogger(__name__)

_LEADER_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
_INFO_SECONDS: Final = 10.0
_MIN_SECONDS: Final = 0.1


class LeaderEtcd:
    """Finds the store of the Swarm, and runs it while this host leads."""

    def __init__(
        self,
        docker: DockerApi,
        settings: EtcdSettings,
        *,
        noted: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """*noted* returns the managers that the Swarm's folder has; if none, the engine's answer counts."""
        self._noted = noted
        self._docker = docker
        self._settings = settings
        self._facts = SwarmFacts()
        self._managers: tuple[str, ...] = ()
        self._wanted = True
        self._info_at = 0.0
        self._complaint = ""
        self._sessions = TlsSessions(settings.credentials)
        self._thread = Supervised(
            "swarm-store",
            self._turn,
            settle=_MIN_SECONDS,  # however often we are asked
            at_end=lambda: self._etcd.stop("this plugin is stopping"),
        )
        self._etcd = Supervisor(settings, lambda: self._thread.stopping)

    @property
    def threads(self) -> tuple[Supervised, ...]:
        """All threads, so that their state can be read."""
        return (self._thread, *self._etcd.threads)

    def start(self) -> None:
        """Begin to ask the engine, which need not be up yet."""
        self._thread.start()

    def stop(self) -> None:
        """End, and the server with it."""
        self._thread.stop()

    def endpoints(self) -> Sequence[str]:
        """Return where the store may be, the likeliest first; returns at once.

        A call means that the store is away: the list is then refreshed.
        """
        if not self._wanted:
            self._wanted = True
            self._thread.wake()
        hosts = dict.fromkeys(self._known())
        if self._etcd.serving and (own := self._facts.address):
            # A router that translates our address need not lead us back to ourselves.
            hosts = dict.fromkeys([loopback(own), own, *hosts])
        return [f"https://{bracket(host)}:{self._settings.port}" for host in hosts]

    @property
    def serving(self) -> bool:
        """Whether this host runs the store at present."""
        return self._etcd.serving

    def _turn(self) -> float:
        self._look()
        return self._patience()

    def _patience(self) -> float:
        if self._wanted:
            return _RETRY_SECONDS
        settled = self._facts.member is not None and not self._facts.manager
        return _INFO_SECONDS if settled else _LEADER_SECONDS

    def _look(self) -> None:
        """Ask the engine, and run the server here, or not."""
        if self._wanted or time.monotonic() >= self._info_at:
            self._refresh()
        leadership = self._docker.leadership(self._facts)
        if leadership is Leadership.YES:
            self._etcd.keep_running(self._facts.address)
        elif leadership is Leadership.NO:
            self._etcd.stop("this node does not lead the Swarm")
        else:
            self._info_at = 0.0  # only /info tells a node that it was demoted
            if self._etcd.serving and self._another_serves():
                self._etcd.stop("another manager runs it, and the engine here cannot tell who leads")
            self._etcd.keep()

    def _known(self) -> Sequence[str]:
        return self._noted() or self._managers

    def _another_serves(self) -> bool:
        """Tell whether the store of another manager answers."""
        others = (host for host in self._known() if host != self._facts.address)
        return any(serves(self._sessions, host, self._settings.port) for host in others)

    def _refresh(self) -> None:
        """Ask the engine who is in the Swarm; as long as it does not answer, the last answer stands."""
        try:
            facts = self._docker.info()
        except EngineAway as error:
            self._complain(str(error))
            return
        self._complain("")
        self._wanted = False
        self._info_at = time.monotonic() + _INFO_SECONDS
        if facts != self._facts:
            log.info(
                "Swarm: %s, manager: %s, managers: %s", facts.state, facts.manager, ", ".join(facts.managers)
            )
        self._facts = facts
        if facts.member is False:
            self._managers = ()
        elif facts.managers:
            self._managers = facts.managers

    def _complain(self, reason: str) -> None:
        if reason and reason != self._complaint:
            log.warning("the engine cannot be asked about the Swarm: %s", reason)
        self._complaint = reason
