"""Tells what was measured: a table with ratios first, and the machine it was on."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from bench.figures import BUILT_IN, OURS, Figure, Figures, Spread
from bench.scene import swarm
from tests.lab.packages import ENGINES, engine_version


def machine(engine: str) -> dict[str, str]:
    """Return what the figures depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cores": str(os.cpu_count()),
        "processor": cpu,
        "memory": f"{memory / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "engine": engine_version(engine) if engine in ENGINES else engine,
        "python": platform.python_version(),
    }


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as Markdown, a table a part: medians, and ratios round by round with quartiles."""
    return "\n".join(_part(part, list(group)) for part, group in by_part(figures))


def by_part(figures: Sequence[Figure]) -> Iterator[tuple[str, Iterable[Figure]]]:
    """Group the figures by their part."""
    return groupby(sorted(figures, key=lambda f: f.measure.part), key=lambda f: f.measure.part)


def subjects(figures: Sequence[Figure]) -> list[str]:
    """Return who was measured: ours first, the built-in next."""
    found = dict.fromkeys(subject for figure in figures for subject in figure.samples)
    return sorted(found, key=lambda s: (s != OURS, s != BUILT_IN))


def _part(part: str, figures: list[Figure]) -> str:
    others = [subject for subject in subjects(figures) if subject != OURS]
    head = ["", *(f"{OURS} / {other}" for other in others), OURS, *others, "unit", "better", "rounds"]
    lines = [f"## {part}", "", _row(head), _row(["---"] * len(head))]
    for figure in figures:
        ratios = [_told(figure.ratio(OURS, other)) for other in others]
        medians = [_number(figure.median(s)) if s in figure.samples else "" for s in [OURS, *others]]
        rounds = str(max(len(values) for values in figure.samples.values()))
        measure = figure.measure
        lines.append(_row([measure.name, *ratios, *medians, measure.unit, measure.better, rounds]))
    return "\n".join([*lines, ""])


def alone(run: Callable[..., None], hosts: int = 2) -> None:
    """Run one part of the benchmark in a Swarm of its own and print its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    options = parser.parse_args()
    figures = Figures()
    with swarm(hosts) as lab:
        run(figures, lab, quick=options.quick)
    print(table(figures.all()))


def facts(of: Mapping[str, str]) -> str:
    """Return the machine in a line."""
    return ", ".join(f"{name} {value}" for name, value in of.items() if value)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(ratio: Spread | None) -> str:
    return f"**{ratio.median:.2f}** ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
