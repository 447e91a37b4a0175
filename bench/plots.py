"""Draws what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from bench.figures import Figure, Spread
from bench.report import subjects


def plot(part: str, figures: Sequence[Figure], file: Path) -> None:
    """Draw one bar a subject, a panel a measure: medians, with the quartiles as whiskers."""
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["svg.hashsalt"] = part  # the same figures make the same file
    names = subjects(figures)
    columns = min(4, len(figures))
    rows = -(-len(figures) // columns)
    canvas, panels = pyplot.subplots(rows, columns, figsize=(4 * columns, 2.2 * rows), squeeze=False)
    for panel in panels.flat[len(figures) :]:
        panel.axis("off")
    for panel, figure in zip(panels.flat, figures, strict=False):
        shown = [name for name in names if name in figure.samples]
        spreads = [spread for name in shown if (spread := Spread.of(figure.samples[name]))]
        middles = [spread.median for spread in spreads]
        whiskers = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        panel.barh(shown, middles, xerr=whiskers, color=[f"C{names.index(name)}" for name in shown])
        panel.invert_yaxis()
        panel.set_title(figure.measure.name, fontsize=8)
        panel.set_xlabel(f"{figure.measure.unit} ({figure.measure.better} is better)", fontsize=7)
        panel.tick_params(labelsize=7)
    canvas.tight_layout()
    canvas.savefig(file, metadata={"Date": None})
    pyplot.close(canvas)
