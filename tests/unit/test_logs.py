"""Logging: one line an event, each to the stream that dockerd gives the right level."""

from __future__ import annotations

import logging
import os
import re
import socket

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


def test_a_long_event_loses_its_middle(capfd: pytest.CaptureFixture[str], reset_logging: None) -> None:
    """dockerd's reader ends for good at a line of 64 KiB; beginning and end say most."""
    logs.set_up("info")
    logging.getLogger("test").error("begin %s end", "\u20ac" * 1_000_000)
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line.encode()) < 4096
    assert " ERROR test: begin \u20ac" in line
    assert line.endswith("\u20ac end")
    note = re.search(r"\.\.\.\(([\d,]+) bytes more\)\.\.\.", line)
    assert note
    assert 2_990_000 < int(note[1].replace(",", "")) < 3_000_100


def test_an_event_that_cannot_be_formatted_is_told(
    capsys: pytest.CaptureFixture[str], reset_logging: None
) -> None:
    """Without a traceback of logging's own."""
    logs.set_up("info")
    logging.getLogger("test").error("%d", "x")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ERROR test: '%d' cannot be logged: ")


def test_the_output_is_closed_with_the_handler(reset_logging: None) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        handler = logs.PatientHandler(stream)
        handler.handle(logging.LogRecord("test", logging.INFO, "", 0, "hello", None, None))
    assert os.read(reader, 4096).endswith(b" INFO test: hello\n")
    handler.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_socket_is_never_waited_for(reset_logging: None) -> None:
    """A service of systemd logs to one."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.dup(ours.fileno()), "w") as stream:
        handler = logs.PatientHandler(stream)
        for _ in range(2000):
            handler.handle(logging.LogRecord("test", logging.INFO, "", 0, "x" * 1000, None, None))
        before = theirs.recv(1 << 24, socket.MSG_DONTWAIT)
        handler.handle(logging.LogRecord("test", logging.INFO, "", 0, "the last", None, None))
        handler.close()
        ours.shutdown(socket.SHUT_WR)
        after = b"".join(iter(lambda: theirs.recv(1 << 24), b""))
    assert before.count(b"\n") < 2000
    assert b" lines are missing here" in after
    assert after.endswith(b"the last\n")
