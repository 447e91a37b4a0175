"""Our bytes, as others read them, are what we mean: the part that needs no kernel."""

from __future__ import annotations

import pytest

from tests import golden


@pytest.mark.parametrize("name", golden.PURE)
def test_it_is_what_the_golden_file_says(name: str) -> None:
    assert golden.PURE[name]() == (golden.FILES / name).read_text()
