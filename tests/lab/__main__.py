"""`python -m tests.lab`: a lab by hand."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from . import cleanup, packages
from .image import build_plugin
from .lab import Lab
from .paths import say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser(
        "up", help="bring a lab up; it stays until Ctrl-C, or until `down` with --detach"
    )
    up.add_argument(
        "--engines", default="28.5,28.5,20.10", help=f"of {', '.join(packages.ENGINES)} (%(default)s)"
    )
    up.add_argument("--mtu", type=int, default=1500, help="of the underlay (%(default)s)")
    up.add_argument("--ipv6", action="store_true", help="give the underlay IPv6 addresses too")
    up.add_argument("--swarm", type=int, default=1, metavar="MANAGERS", help="0: no swarm (%(default)s)")
    up.add_argument("--detach", action="store_true", help="leave the lab running and return")
    commands.add_parser("ensure", help="install and unpack everything the lab needs")
    commands.add_parser("build", help="build the plugin; prints the folder with rootfs/ and config.json")
    commands.add_parser("down", aliases=["clean"], help="remove the detached lab and what dead labs left")
    run = commands.add_parser("exec", help="run a command on a host of the detached lab")
    run.add_argument("host")
    run.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the lab makes namespaces and mounts: run it as root")
    if options.command == "up":
        return _up(options)
    if options.command == "exec":
        return _exec(options.host, options.argv)
    if options.command == "ensure":
        packages.ensure()
    elif options.command == "build":
        print(build_plugin())
    else:
        gone = cleanup.clean()
        say(f"removed {', '.join(gone)}" if gone else "nothing was left")
    return 0


def _up(options: argparse.Namespace) -> int:
    # A terminal that is closed, or `timeout`, must take the lab down as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    engines = options.engines.split(",")
    try:
        with Lab(engines, mtu=options.mtu, ipv6=options.ipv6, detached=options.detach) as lab:
            if options.swarm:
                lab.swarm(managers=options.swarm)
            for host in lab.hosts:
                print(f"{host.name}  {host.address}  engine {packages.engine_version(host.engine)}")
                print(f"    {enter_command(lab, host.name)}")
            if not options.detach:
                print("Ctrl-C takes the lab down.", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        say("down")
    return 0


def enter_command(lab: Lab, name: str) -> str:
    """What to type to get a shell in a host, its own docker first in PATH."""
    host = lab.host(name)
    path = packages.engine_path(host.engine)
    return f"nsenter -a -t {host.spaces.holder.pid} env PATH={path}:$PATH bash"


def _exec(name: str, argv: list[str]) -> int:
    host = Lab.attach().host(name)
    command = [part for part in argv if part != "--"] if argv[:1] == ["--"] else argv
    return host.popen(command or ["bash"]).wait()


if __name__ == "__main__":
    sys.exit(main())
