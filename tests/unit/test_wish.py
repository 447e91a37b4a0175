"""Who looks at the state does not wait for who changes it."""

from __future__ import annotations

import threading
from dataclasses import replace
from ipaddress import ip_address

from driver.wish.disk import MemoryDisk
from driver.wish.model import Host
from driver.wish.state import State
from driver.wish.values import NodeId
from driver.wish.wish import Wish

HOST = Host(NodeId("me"), ip_address("192.0.2.1"))
MOVED = Host(NodeId("me"), ip_address("192.0.2.2"))


class SlowDisk(MemoryDisk):
    """A disk that writes when it is let."""

    def __init__(self) -> None:
        super().__init__(State(HOST))
        self.writes, self.may_end = threading.Event(), threading.Event()

    def save(self, state: State) -> None:
        self.writes.set()
        assert self.may_end.wait(5)
        super().save(state)


def test_while_the_disk_writes_everybody_sees_the_former_state() -> None:
    disk = SlowDisk()
    wish = Wish(disk)
    change = threading.Thread(target=wish.change, args=[lambda state: replace(state, host=MOVED)])
    change.start()
    assert disk.writes.wait(5)
    assert wish.snapshot() == (wish.state, 1)
    assert wish.state.host == HOST
    disk.may_end.set()
    change.join()
    assert wish.snapshot() == (wish.state, 2)
    assert wish.state.host == MOVED
