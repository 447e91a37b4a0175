"""Finds dead links: every relative link in a Markdown file must lead to a file of this repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
ROOT = Path(__file__).parent.parent


def dead_links(root: Path) -> list[str]:
    """Return a line for each link that leads nowhere, or to a heading that is not there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return [problem for name in listed.stdout.split() for problem in _dead_links_in(root / name, root)]


def _dead_links_in(page: Path, root: Path) -> list[str]:
    targets = _LINK.findall(_CODE.sub("", page.read_text()))
    return [
        f"{page.relative_to(root)}: {target}"
        for target in targets
        if "://" not in target and not _leads_somewhere(page, target)
    ]


def _leads_somewhere(page: Path, target: str) -> bool:
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not heading or heading in _headings(file))


def _headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


if __name__ == "__main__":
    problems = dead_links(ROOT)
    print("\n".join(f"dead link: {problem}" for problem in problems) or "no dead links")
    sys.exit(bool(problems))
