"""The command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from lib.bounded import bounded
from plugin import __version__, logs, settings

if TYPE_CHECKING:
    from plugin import server

EXIT_USAGE = 2
CANNOT_START = (EXIT_USAGE, 3)
"""Exit statuses after which a restart would fail in the same way; 3 is that of gunicorn's worker."""
_PATIENCE = 20.0
"""Seconds; dockerd gives up on a plugin when nothing has listened for 9.5 (moby plugin/manager_linux.go)."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in *argv*; raises SystemExit, with status 2 if the user must change something."""
    arguments = _parser().parse_args(argv)
    environ = dict(os.environ)
    if arguments.socket:
        environ[f"{settings.PREFIX}SOCKET"] = arguments.socket
    try:
        _serve(environ)
    except SystemExit as ending:
        if ending.code in CANNOT_START and os.getpid() == 1:
            _wait_to_be_stopped()
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyoverlay",
        description="VXLAN overlay networks for Docker.",
        epilog="Settings are environment variables PYOVERLAY_...; the README lists them.",
    )
    parser.add_argument("--version", action="version", version=f"pyoverlay {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the engine until stopped")
    serve.add_argument("--socket", metavar="PATH", help="the Unix socket to serve on (PYOVERLAY_SOCKET)")
    return parser


def _serve(environ: dict[str, str]) -> NoReturn:
    """Check the settings and serve; what the user must change goes to stderr, not to the log."""
    try:
        chosen = settings.load(environ)
    except settings.SettingsError as error:
        _refuse(*error.problems)
    logs.set_up(chosen.log_level)
    from plugin import instance, server  # noqa: PLC0415 -- a wrong setting is refused without loading the rest

    try:
        server.serve(
            chosen, _make_runtime, preload=("plugin.wiring",), owning=partial(instance.owning, chosen)
        )
    except (server.SocketInUse, instance.NotTheOwner) as error:
        _refuse(str(error))


def _make_runtime(chosen: settings.Settings, restart: server.Restart) -> server.Runtime:
    from plugin.wiring import make_runtime  # noqa: PLC0415 -- after the socket is there

    return make_runtime(chosen, restart)


def _refuse(*problems: str) -> NoReturn:
    for problem in problems:
        print(bounded(f"pyoverlay: {problem}", logs.LINE).decode(), file=sys.stderr)
    sys.exit(EXIT_USAGE)


def _wait_to_be_stopped() -> None:
    """Wait, without a socket, until dockerd gives up.

    It restarts a managed plugin at once whenever it ends, for ever. A restart while dockerd 20.10 still waits
    for the first one's socket leaves a plugin that cannot be enabled again.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigtimedwait(ends, _PATIENCE)


if __name__ == "__main__":
    main()
