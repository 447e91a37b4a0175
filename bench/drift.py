"""How fast what somebody changed is right again, what the reconciler costs at rest, and what a Join costs.

    .venv/bin/python -m bench.drift [--times 10] [--rest 30]

Needs root; everything happens in network namespaces of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from lib.supervised import Supervised
from tests.kernel.hosts import Host
from tests.kernel.machine import Machine, Meter, running
from tests.kernel.test_repair import CUTTING, HARMLESS, Lab, repaired_in

APART = 1.1
"""Seconds between two changes: the reconciler looks at a network once a second."""


def thread_seconds(supervised: Supervised) -> float:
    """CPU time that a thread of this process has used."""
    fields = Path(f"/proc/self/task/{supervised._thread.native_id}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def drift(stack: ExitStack, times: int) -> None:
    """Print the time from each change to right again."""
    lab = Lab(machines(stack))
    for change in [*HARMLESS, *CUTTING]:
        took = []
        for _ in range(times):
            time.sleep(APART)
            took.append(repaired_in(lab, change) * 1000)
        print(f"{change:80} median {statistics.median(took):5.0f} ms   max {max(took):5.0f}", flush=True)


def rest(stack: ExitStack, seconds: float) -> None:
    """Print what the reconciler takes of a CPU with 10 networks of 10 ports and traffic, and joins."""
    a, b = machines(stack)
    joins: list[float] = []
    for network in range(10):
        for machine in (a, b):
            machine.create(f"network{network}", f"10.{network}.0.0/24", 8000 + network)
        for port in range(10):
            start = time.perf_counter()
            a.attach(f"network{network}", f"10.{network}.0.{20 + port}")
            joins.append((time.perf_counter() - start) * 1000)
        b.attach(f"network{network}", f"10.{network}.0.100")
    print(f"join, with the container's own set-up: median {statistics.median(joins):.1f} ms", flush=True)
    with ExitStack() as meters:
        for network in range(10):
            for port in range(10):
                source = a.containers[network * 10 + port]
                meters.enter_context(Meter(source, f"10.{network}.0.100", pause=0.1))
        time.sleep(2)
        before = thread_seconds(a.reconciler.threads[0])
        time.sleep(seconds)
        used = thread_seconds(a.reconciler.threads[0]) - before
    print(f"thread of the networks at rest: {used * 1000:.1f} ms of CPU in {seconds:g} s", flush=True)


def machines(stack: ExitStack) -> list[Machine]:
    """Two machines that end with *stack*."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    hosts = [Host(folder / name) for name in ("a", "b")]
    for host in hosts:
        stack.callback(host.close)
    return stack.enter_context(running(hosts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--rest", type=float, default=30)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        rest(stack, arguments.rest)
    with ExitStack() as stack:
        drift(stack, arguments.times)


if __name__ == "__main__":
    main()
