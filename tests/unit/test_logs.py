"""Logging: one line an event, each to the stream that dockerd gives the right level."""

from __future__ import annotations

import logging

import pytest

from plugin import logs


def test_an_event_is_one_line(capsys: pytest.CaptureFixture[str], reset_logging: None) -> None:
    """Tracebacks and what comes in with a request included."""
    logs.set_up("info")
    try:
        raise ValueError("line\nbreak")
    except ValueError:
        logging.getLogger("test").exception("bad value %s", "x\n2026-01-01 ERROR fake\x1b[2J\r")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert " ERROR test: bad value x | 2026-01-01 ERROR fake?[2J" in err
    assert err.endswith(" | ValueError: line | break\n")


def test_levels_have_their_streams(capsys: pytest.CaptureFixture[str], reset_logging: None) -> None:
    """dockerd logs a plugin's stdout as information and its stderr as errors."""
    logs.set_up("info")
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("test"), level)("it is %s", level)
    output = capsys.readouterr()
    assert [line.split("it is ")[1] for line in output.out.splitlines()] == ["info"]
    assert [line.split("it is ")[1] for line in output.err.splitlines()] == ["warning", "error"]


def test_debug_is_ours_alone(capsys: pytest.CaptureFixture[str], reset_logging: None) -> None:
    """Other packages' details would bury ours."""
    logs.set_up("debug")
    for name in ("plugin.routes", "urllib3.connectionpool", "gunicorn.error"):
        logging.getLogger(name).debug("detail")
    assert capsys.readouterr().out.count("detail") == 1
