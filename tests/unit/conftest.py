"""Fixtures of the unit tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def reset_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test set up logging: its handlers are gone, and pytest's are back, when it ends."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    levels = {logger: logger.level for logger in (logging.root, *loggers)}
    monkeypatch.setattr(logging.root, "handlers", [])
    yield
    for handler in logging.root.handlers:
        handler.close()
    for logger, level in levels.items():
        logger.setLevel(level)
