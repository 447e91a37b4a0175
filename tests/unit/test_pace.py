"""Turns some time apart."""

from __future__ import annotations

from itertools import pairwise

import pytest

from driver.pace import Pace


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("driver.pace.time", clock)
    return clock


def turns(pace: Pace, clock: Clock, count: int) -> list[float]:
    began, found = clock.now, []
    for _ in range(count):
        clock.now = began  # all come at once
        pace.await_turn()
        found.append(clock.now - began)
    return found


def test_callers_at_once_go_on_some_time_apart(clock: Clock) -> None:
    assert turns(Pace(0.5, 0.5, 10), clock, 4) == [0, 0.5, 1, 1.5]


def test_hosts_that_begin_at_once_do_not_keep_step(clock: Clock) -> None:
    here, there = (turns(Pace(0.2, 1, 100), clock, 50) for _ in range(2))
    gaps = [late - early for found in (here, there) for early, late in pairwise(found)]
    assert all(0.2 <= round(gap, 6) <= 1 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.4
    assert here != there


def test_a_pause_is_not_saved_up(clock: Clock) -> None:
    """Whoever comes after a pause has one turn at once, not those that nobody took."""
    pace = Pace(0.5, 0.5, 10)
    turns(pace, clock, 1)
    clock.now += 10
    assert turns(pace, clock, 2) == [0, 0.5]


def test_nobody_waits_for_longer_than_that(clock: Clock) -> None:
    assert turns(Pace(0.5, 0.5, 1.25), clock, 5) == [0, 0.5, 1, 1.25, 1.25]
