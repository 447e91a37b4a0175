"""How measured figures are told: ratios are taken round by round, and the better direction is said."""

from __future__ import annotations

from bench.figures import BUILT_IN, OURS, UNDERLAY, Figures, Measure, Spread
from bench.report import subjects, table

SPEED = Measure("data path", "TCP", "Gbit/s", "more")


def measured() -> Figures:
    figures = Figures()
    for ours, built_in in ((10.0, 10.0), (30.0, 10.0), (4.0, 2.0)):  # a machine that is not always as fast
        figures.add(SPEED, BUILT_IN, built_in)
        figures.add(SPEED, OURS, ours)
    return figures


def test_a_ratio_compares_only_what_was_measured_in_the_same_round() -> None:
    (figure,) = measured().all()
    assert figure.ratio(OURS, BUILT_IN) == Spread(3, 2.0, 1.5, 2.5)
    assert figure.median(OURS) / figure.median(BUILT_IN) == 1.0
    assert figure.ratio(OURS, UNDERLAY) is None


def test_the_table_puts_ratios_first_and_says_what_is_better() -> None:
    head, _, row = table(measured().all()).splitlines()[2:5]
    assert head == "|  | pyoverlay / overlay | pyoverlay | overlay | unit | better | rounds |"
    assert row == "| TCP | **2.00** (1.50-2.50) | 10 | 10 | Gbit/s | more | 3 |"


def test_ours_comes_first_and_the_built_in_next() -> None:
    figures = Figures()
    for subject in (UNDERLAY, BUILT_IN, OURS):
        figures.add(SPEED, subject, 1.0)
    assert subjects(figures.all()) == [OURS, BUILT_IN, UNDERLAY]


def test_a_sample_of_one_or_two_is_its_own_spread() -> None:
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0)
    assert Spread.of([3.0, 1.0]) == Spread(2, 2.0, 1.0, 3.0)
