"""What all tiers share."""

from __future__ import annotations

from collections.abc import Generator

import hypothesis
import pytest

from tests.lab import Lab

# An example may take long because the machine is busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the engines' logs of a lab in which a test failed: its fixture does not hear of that."""
    report = yield
    if report.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            lab = getattr(value, "lab", value)
            if isinstance(lab, Lab):
                lab.keep_logs()
    return report
