"""The command line, as far as it goes without serving."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from plugin.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str, str]:
    """Return exit status, output and error output."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("pyoverlay ")


@pytest.mark.parametrize("argv", [(), ("serv",), ("serve", "--sock"), ("serve", "extra")])
def test_a_wrong_command_is_told(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert "usage: pyoverlay" in err


def test_wrong_settings_are_told_line_by_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 2 and nothing was started."""
    monkeypatch.setenv("PYOVERLAY_VTEP", "here")
    monkeypatch.setenv("PYOVERLAY_SCOP", "local")
    status, _, err = run(capsys, "serve", "--socket", "relative.sock")
    assert status == 2
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        "PYOVERLAY_SCOP",
        "PYOVERLAY_VTEP",
        "PYOVERLAY_SOCKET",
    ]


def test_a_file_in_the_place_of_the_socket_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, reset_logging: None
) -> None:
    (tmp_path / "x.sock").write_text("precious")
    status, _, err = run(capsys, "serve", "--socket", str(tmp_path / "x.sock"))
    assert status == 2
    assert "is not a socket" in err
    assert (tmp_path / "x.sock").read_text() == "precious"


def test_a_socket_that_answers_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, reset_logging: None
) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        status, _, err = run(capsys, "serve", "--socket", str(path))
    assert status == 2
    assert "another process is serving on it" in err


def test_a_long_setting_is_not_told_in_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """dockerd's reader ends at a line of 64 KiB."""
    monkeypatch.setenv("PYOVERLAY_VTEP", "1" * 100_000)
    _, _, err = run(capsys, "serve")
    assert len(err) < 4096
    assert err.startswith("pyoverlay: PYOVERLAY_VTEP: '111")
    assert "such as 10.0.0.1" in err
