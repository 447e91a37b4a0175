"""An endpoint's life: the states, the events, and what follows. Data, read by `state`. Pure.

The columns are states, the rows are events. `-`: nothing changes. `?`: it is doubtful, since nothing has
shown that it is alive (ADR 8)::

                   absent    created   joining   joined    left      created?  joined?   left?
    CREATE         created   -         created   created   created   created   created   created
    JOIN           refused   joining   -         joining   joining   joining   joining   joining
    ANSWERED       -         -         joined    -         -         -         -         -
    UNDONE         -         -         created   -         -         -         -         -
    LEAVE          -         -         left      left      -         -         left?     -
    DELETE         -         absent    absent    absent    absent    absent    absent    absent
    NETWORK_GONE   -         absent    absent    absent    absent    absent    absent    absent
    RESTART        -         created?  joined    -         absent    -         joined    absent
    VANISHED       -         -         -         joined?   -         -         -         -
    FORGOTTEN      -         -         -         -         -         absent    absent    absent
    ADDRESS_TAKEN  -         -         -         -         -         absent    absent    absent

    on disk as     -         created   joined    joined    left      created   joined    left
    receives       no        yes       yes       yes       no        no        no        no
    has a port     no        no        yes       yes       yes       no        no        no

A repeated CREATE replaces the record, and after a repeated JOIN the newer one is the one that waits.
An endpoint that *receives* is announced to the other hosts, which send to it, and holds its addresses. A
*port* is the endpoint's veth pair in the kernel; one is made only while joining, and kept otherwise. The disk
holds the phase alone: what a new process concludes from it is the event RESTART.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from driver.wish.model import Phase


class Life(Enum):
    """Where an endpoint is in its life. The value is what a `State` keeps: phase, joining, doubtful."""

    ABSENT = None, False, False
    """Not known on this host: never made, deleted or forgotten."""
    CREATED = Phase.CREATED, False, False
    """Announced ahead of Join, so that the container is known everywhere when it starts."""
    JOINING = Phase.JOINED, True, False
    """A Join waits for its veth pair, which must be made now."""
    JOINED = Phase.JOINED, False, False
    """The engine has the container end: a pair that vanishes is never recreated."""
    LEFT = Phase.LEFT, False, False
    """The container end comes back, and stays until DeleteEndpoint."""
    CREATED_DOUBTFUL = Phase.CREATED, False, True
    """It never joined before a restart: its CreateEndpoint may never have been answered."""
    JOINED_DOUBTFUL = Phase.JOINED, False, True
    """No container has it any more, but no Leave has come."""
    LEFT_DOUBTFUL = Phase.LEFT, False, True
    """The Leave came after all; only DeleteEndpoint is missing."""

    def __init__(self, phase: Phase | None, joining: bool, doubtful: bool) -> None:
        self.phase = phase
        """What is on disk; None for no record."""
        self.joining = joining
        self.doubtful = doubtful

    @property
    def receives(self) -> bool:
        """Whether others may send to it: then it is announced, and its addresses are taken."""
        return self in (Life.CREATED, Life.JOINING, Life.JOINED)

    @property
    def has_port(self) -> bool:
        """Whether the kernel should have its port."""
        return self in (Life.JOINING, Life.JOINED, Life.LEFT)


class Event(Enum):
    """What may happen to an endpoint."""

    CREATE = "CreateEndpoint"
    JOIN = "Join"
    ANSWERED = "the Join that waits is answered: the engine has the pair"
    UNDONE = "the Join that waits has failed"
    LEAVE = "Leave"
    DELETE = "DeleteEndpoint"
    NETWORK_GONE = "DeleteNetwork, or the engine does not know the doubtful network"
    RESTART = "a new process reads the disk"
    VANISHED = "its port has vanished, or its container end is back in the host's namespace"
    FORGOTTEN = "no call has named it for longer than the engine repeats a call"
    ADDRESS_TAKEN = "CreateEndpoint of another with one of its addresses"


_UNCHANGED = {life: life for life in Life}
_DOUBT_ENDS = {**_UNCHANGED, **dict.fromkeys((life for life in Life if life.doubtful), Life.ABSENT)}

LIVES: Mapping[Event, Mapping[Life, Life]] = MappingProxyType(
    {
        Event.CREATE: dict.fromkeys(Life, Life.CREATED),
        Event.JOIN: dict.fromkeys((life for life in Life if life is not Life.ABSENT), Life.JOINING),
        Event.ANSWERED: {**_UNCHANGED, Life.JOINING: Life.JOINED},
        Event.UNDONE: {**_UNCHANGED, Life.JOINING: Life.CREATED},
        Event.LEAVE: {
            **_UNCHANGED,
            Life.JOINING: Life.LEFT,
            Life.JOINED: Life.LEFT,
            Life.JOINED_DOUBTFUL: Life.LEFT_DOUBTFUL,
        },
        Event.DELETE: dict.fromkeys(Life, Life.ABSENT),
        Event.NETWORK_GONE: dict.fromkeys(Life, Life.ABSENT),
        Event.RESTART: {
            Life.ABSENT: Life.ABSENT,
            Life.CREATED: Life.CREATED_DOUBTFUL,
            Life.JOINING: Life.JOINED,
            Life.JOINED: Life.JOINED,
            Life.LEFT: Life.ABSENT,
            Life.CREATED_DOUBTFUL: Life.CREATED_DOUBTFUL,
            Life.JOINED_DOUBTFUL: Life.JOINED,
            Life.LEFT_DOUBTFUL: Life.ABSENT,
        },
        Event.VANISHED: {**_UNCHANGED, Life.JOINED: Life.JOINED_DOUBTFUL},
        Event.FORGOTTEN: _DOUBT_ENDS,
        Event.ADDRESS_TAKEN: _DOUBT_ENDS,
    }
)
"""What follows, by event and then by the endpoint's life. What is missing is refused."""
