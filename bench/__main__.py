"""Everything that is measured, side by side with Docker's built-in overlay: `python -m bench [--quick]`.

Leaves samples, table and pictures in bench/results/, named after the form (quick or full).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bench import calls, convergence, datapath, scale, vips
from bench.figures import Figures
from bench.plots import plot
from bench.report import by_part, facts, machine, table
from bench.scene import swarm

RESULTS = Path(__file__).parent / "results"
ENGINE = "28.5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: under three minutes")
    options = parser.parse_args()
    began = time.monotonic()
    figures = Figures()
    try:
        for alone in (scale, vips):
            alone.run(figures, quick=options.quick)
        with swarm(3, ENGINE) as lab:
            for part in (convergence, calls, datapath):
                part.run(figures, lab, quick=options.quick)
    finally:  # what was measured before something failed stays
        write("quick" if options.quick else "full", figures, time.monotonic() - began)


def write(form: str, figures: Figures, seconds: float) -> None:
    """Leave what was measured in the results' folder, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    on = {**machine(ENGINE), "took": f"{seconds:.0f} s"}
    dumped = {"machine": on, "figures": figures.dump()}
    (RESULTS / f"{form}.json").write_text(json.dumps(dumped, indent=1) + "\n", encoding="utf-8")
    pictures = []
    for part, group in by_part(figures.all()):
        name = f"{form}-{part.replace(' ', '-')}.svg"
        if plot(part, list(group), RESULTS / name):
            pictures.append(f"![{part}]({name})")
    text = "\n".join([f"# {form} form", "", facts(on), "", table(figures.all()), *pictures, ""])
    (RESULTS / f"{form}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
