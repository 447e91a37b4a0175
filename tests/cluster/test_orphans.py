"""Whose records any host may remove, and when."""

from __future__ import annotations

from driver.cluster.ledger.orphans import OrphanWatch
from driver.wish.records import View
from driver.wish.values import NodeId
from tests.cluster.harness import NET, endpoint, node

DEAD = endpoint("d", 1)
SEEN = View(True, {NodeId("a"): node("a")}, {NET: {DEAD.address: DEAD}})


def test_what_was_seen_before_we_were_cut_off_does_not_count() -> None:
    watch = OrphanWatch(600)
    assert not watch.due(SEEN, 0)
    watch.restart()
    assert not watch.due(SEEN, 700)
    assert watch.due(SEEN, 1300) == {NodeId("d"): [DEAD]}
