"""How soon ten hosts know of a new container: the plugin's own processes on real kernels, without engines.

    unshare --net --mount --pid --fork --kill-child --mount-proc .venv/bin/python -m bench.agents [--json]

`bench.convergence` runs this. Each host is a network namespace on one wire, with tables of its own. They
share one etcd, and this machine's processors: eleven real hosts would be faster.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

from bench.alone import store, tails
from bench.figures import OURS, Figures, Measure
from bench.process import Plugin
from bench.report import table
from driver.kernel import netns
from driver.kernel.names import namespace_name
from driver.kernel.netlink.socket import attributes
from driver.wish.values import NetworkId
from tests.faults.story import NETWORK, Step, attach, create, detach
from tests.kernel.hosts import Space

ETCD = "192.0.2.254"
PATIENCE = 10.0
"""Seconds after which a row will not come any more."""

_NEWNEIGH, _DELNEIGH = 28, 29
_GROUP_OF_NEIGHBOURS = 4
_HEADER, _ROW = struct.Struct("=IHHII"), 16 + 12  # nlmsghdr; and ndmsg
_DST = 1


class Agent:
    """A host with the plugin on it, and a container that is there all the time."""

    def __init__(self, stack: ExitStack, folder: Path, url: str, number: int) -> None:
        self.space = Space(netns.create())
        stack.callback(self.space.close)
        _shell(
            f"ip link add wire{number} type veth peer name eth0 netns {self.space.path}",
            f"ip link set wire{number} master wire up",
        )
        self.space.run(f"ip address add 192.0.2.{number}/24 dev eth0; ip link set eth0 up")
        enter = ["nsenter", f"--net={self.space.path}"]
        self._plugin = stack.enter_context(Plugin(folder, url, f"192.0.2.{number}", *enter))
        self.do(*create(NETWORK), *attach(NETWORK, f"{number:064x}", f"10.62.0.{100 + number}"))
        self.listener = self._listen(folder / "run" / "netns" / namespace_name(NetworkId(NETWORK)))

    def do(self, *steps: Step) -> float:
        """Have the network driver's calls among *steps* answered; return when that was."""
        for step in steps:
            if step.method.startswith("NetworkDriver."):
                self._plugin.call(step.method, step.body)
        return time.perf_counter()

    @staticmethod
    def _listen(pin: Path) -> socket.socket:
        """Open a socket that hears of rows in the overlay's namespace."""
        with pin.open() as namespace:
            opened = netns.inside(
                namespace.fileno(), lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            )
        opened.bind((0, _GROUP_OF_NEIGHBOURS))
        return opened


def told(agents: Sequence[Agent], kind: int, address: bytes) -> list[float]:
    """Wait until each kernel has told of a change of the address's neighbour row; return when."""
    poll, waiting, times = select.poll(), {agent.listener.fileno(): agent.listener for agent in agents}, []
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        ready = poll.poll(PATIENCE * 1000)
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {len(agents)} hosts were not told within {PATIENCE:g} s")
        for descriptor, _ in ready:
            data = waiting[descriptor].recv(65536)
            if _HEADER.unpack_from(data)[1] == kind and attributes(data, _ROW).get(_DST) == address:
                times.append(time.perf_counter())
                poll.unregister(descriptor)
                del waiting[descriptor]
    return times


def rounds(figures: Figures, agents: Sequence[Agent], times: int) -> None:
    """Start and end a container on the first host, *times* times; measure when the others know it."""
    first, *others = agents
    place = f"row in the kernel of all of {len(others)} other hosts, after"
    with ThreadPoolExecutor(1) as observer:
        for number in range(times):
            endpoint, address = f"{number + 1000:064x}", f"10.62.0.{2 + number % 90}"
            _, made, joined, _ = attach(NETWORK, endpoint, address)
            left, _, deleted, _ = detach(NETWORK, endpoint, address)
            arrival = observer.submit(told, others, _NEWNEIGH, ip_address(address).packed)
            after_create = first.do(made)
            after_join = first.do(joined)
            last = max(arrival.result())
            figures.add(
                Measure("convergence", f"{place} CreateEndpoint", "ms"),
                OURS,
                _milliseconds(after_create, last),
            )
            figures.add(Measure("convergence", f"{place} Join", "ms"), OURS, _milliseconds(after_join, last))
            end = observer.submit(told, others, _DELNEIGH, ip_address(address).packed)
            after_leave = first.do(left)
            first.do(deleted)
            gone = Measure("convergence", f"no row in any of {len(others)} other hosts, after Leave", "ms")
            figures.add(gone, OURS, _milliseconds(after_leave, max(end.result())))


def _milliseconds(start: float, end: float) -> float:
    """Return the time between; what was there before counts as at once."""
    return max(0.0, end - start) * 1000


def _shell(*lines: str) -> None:
    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = Figures()
    _shell(
        "ip link set lo up",
        "ip link add wire type bridge forward_delay 0",
        "ip link set wire up",
        f"ip address add {ETCD}/24 dev wire",
    )
    with store(ETCD) as (folder, url), ExitStack() as stack:
        agents = [Agent(stack, folder / f"h{n}", url, n) for n in range(1, arguments.others + 2)]
        rounds(figures, agents, arguments.rounds)
    tails(figures)
    print(json.dumps(figures.dump()) if arguments.json else table(figures.all()))


if __name__ == "__main__":
    main()
