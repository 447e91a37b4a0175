"""Draws what was measured beside something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from bench.figures import OURS, Figure
from bench.report import subjects


def plot(part: str, figures: Sequence[Figure], file: Path) -> bool:
    """Draw the ratios to each of the others, a line a measure: medians, with the quartiles as whiskers.

    Returns whether there was any.
    """
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["svg.hashsalt"] = part  # the same figures make the same file
    others = [name for name in subjects(figures) if name != OURS]
    compared = [f for f in figures if any(f.ratio(OURS, other) for other in others)]
    if not compared:
        return False
    canvas, panel = pyplot.subplots(figsize=(10, 1.2 + 0.3 * len(compared)))
    panel.axvline(1, color="grey", linewidth=1)
    for number, other in enumerate(others):
        lines = [(line, s) for line, f in enumerate(compared) if (s := f.ratio(OURS, other))]
        middles = [spread.median for _, spread in lines]
        whiskers = [[s.median - s.low for _, s in lines], [s.high - s.median for _, s in lines]]
        heights = [line + 0.2 * (number - (len(others) - 1) / 2) for line, _ in lines]
        if lines:
            panel.errorbar(middles, heights, xerr=whiskers, fmt="o", markersize=4, label=f"{OURS} / {other}")
    panel.set_yticks(range(len(compared)), [f"{f.measure.name} ({f.measure.better})" for f in compared])
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_xlabel("ratio, round by round; in brackets what is better")
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=8)
    canvas.tight_layout()
    canvas.savefig(file, metadata={"Date": None})
    pyplot.close(canvas)
    return True
