"""What a benchmark has measured: samples of one measure for each subject, taken in turn. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

OURS = "pyoverlay"
BUILT_IN = "overlay"
"""Docker's own overlay driver."""
UNDERLAY = "underlay"
"""The hosts themselves, without any overlay."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured, in which unit, and what is the better direction."""

    part: str
    """The part of the benchmark that it belongs to."""
    name: str
    unit: str
    better: Literal["more", "less"] = "less"


@dataclass(slots=True)
class Figure:
    """All samples of one measure: by subject, in the order in which they were taken.

    The n-th sample of each subject belongs to the n-th round: only those are compared.
    """

    measure: Measure
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, subject: str, *values: float) -> None:
        """Take the samples of one round."""
        self.samples.setdefault(subject, []).extend(values)

    def median(self, subject: str) -> float:
        """Return the middle of a subject's samples."""
        return statistics.median(self.samples[subject])

    def ratio(self, subject: str, beside: str) -> Spread | None:
        """Return *subject* / *beside*, round by round; None where one of them was not measured."""
        pairs = zip(self.samples.get(subject, []), self.samples.get(beside, []), strict=False)
        return Spread.of(a / b for a, b in pairs if b)


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample, told by its middle and its quartiles."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Summarise *values*; None when there are none."""
        sample = sorted(values)
        if not sample:
            return None
        if len(sample) < 3:
            return cls(len(sample), statistics.median(sample), sample[0], sample[-1])
        low, middle, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(len(sample), middle, low, high)


class Figures:
    """Collects what the parts measure."""

    def __init__(self) -> None:
        self._figures: dict[Measure, Figure] = {}

    def add(self, measure: Measure, subject: str, *values: float) -> None:
        """Add samples of a measure for a subject."""
        self._figures.setdefault(measure, Figure(measure)).add(subject, *values)

    def all(self) -> Sequence[Figure]:
        """Return every figure, in the order in which its first sample came."""
        return list(self._figures.values())

    def dump(self) -> list[dict[str, Any]]:
        """Return what JSON can hold."""
        return [
            {
                "part": f.measure.part,
                "name": f.measure.name,
                "unit": f.measure.unit,
                "better": f.measure.better,
                "samples": f.samples,
            }
            for f in self.all()
        ]

    @classmethod
    def load(cls, dumped: Iterable[dict[str, Any]]) -> Figures:
        """Read what `dump` has given."""
        figures = cls()
        for entry in dumped:
            measure = Measure(entry["part"], entry["name"], entry["unit"], entry["better"])
            for subject, values in entry["samples"].items():
                figures.add(measure, subject, *values)
        return figures
