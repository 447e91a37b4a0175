"""One real host in a network of thousands of endpoints on up to a thousand other hosts.

    .venv/bin/python -m bench.scale [--quick]

The plugin runs as it is served to an engine, on a real kernel and a real etcd; the other hosts are only
what they would write to etcd. Needs root; everything happens in namespaces of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from bench.figures import OURS, Figures, Measure
from bench.onehost import (
    BATCH,
    Network,
    Others,
    Rows,
    Store,
    record,
    rows_of,
    underlay,
    until,
)
from bench.process import Plugin
from bench.scene import apart
from driver.kernel.host import NetlinkKernel
from driver.kernel.kinds import Bridge, FdbEntry, Namespace, Neighbour, Vxlan
from driver.kernel.objects import KernelObject
from driver.kernel.ops import Set
from driver.reconcile.desired import FALLBACK_UNDERLAY
from driver.reconcile.plan import diff
from driver.wish.values import Mac, NetworkId, Vni

PART = "scale"
MOST = 10_000
NODES = 1_000
ETCD = "etcd"
"""Subject: the store by itself."""
IPROUTE2 = "ip -batch, bridge -batch"

EMPTY, FULL = "an empty kernel", "its rows in the kernel"


def seconds(name: str) -> Measure:
    """A duration in seconds."""
    return Measure(PART, name, "s")


def memory(name: str) -> Measure:
    """A size in MiB."""
    return Measure(PART, name, "MiB")


KERNEL = seconds(f"{MOST} FDB and neighbour pairs written to the kernel")
IDLE = memory("plugin's memory (PSS of its Python processes), no network")
LOADED = memory(f"plugin's memory (PSS of its Python processes), {MOST} remote endpoints")
READY = seconds("plugin's start to its first answer, no network")

LIMITS: Mapping[Measure, float] = {KERNEL: 0.5, IDLE: 80, LOADED: 120, READY: 1.0}
"""What the design asks of pyoverlay."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    sizes: tuple[int, ...]
    """Remote endpoints."""
    rounds: int
    changes: int
    """Single changes timed in a round."""
    rest: float
    """Seconds of doing nothing."""
    kernel_rounds: int
    records: int
    """Endpoints in etcd in the end, all of other networks but the last."""


QUICK = Effort((MOST,), rounds=1, changes=5, rest=10, kernel_rounds=1, records=20_000)
WHOLE = Effort((100, 1_000, MOST), rounds=3, changes=20, rest=33, kernel_rounds=3, records=100_000)


def run(figures: Figures, *, quick: bool) -> None:
    """Measure; a short form takes 40 seconds, the whole five minutes."""
    apart(figures, "bench.scale", *(["--quick"] if quick else []))


def measure(figures: Figures, effort: Effort, folder: Path) -> None:
    """Measure in the namespaces that we are in."""
    underlay()
    for number in range(effort.kernel_rounds):
        compare_writers(figures, folder / f"kernel{number}")
    with closing(Store(folder / "etcd")) as store, closing(Others(store.member)) as others:
        for number in range(effort.rounds):
            for size in effort.sizes:
                others.clear()
                plugin = Plugin(folder / f"host{number}-{size}", store.member.url)
                Trial(figures, effort, size, others, plugin).run()
        load_store(figures, store, others, effort.records)


class Trial:
    """One size, from a host that has never been there to a burst of changes."""

    def __init__(self, figures: Figures, effort: Effort, size: int, others: Others, plugin: Plugin) -> None:
        self._figures = figures
        self._effort = effort
        self._size = size
        self._others = others
        self._plugin = plugin
        self._network = Network(plugin, NetworkId(f"scale{size:020}"))
        self._forwarding = self._network.forwarding()
        self._records = [record(self._network.id, n, n % NODES) for n in range(size)]
        self._spare = [record(self._network.id, size + n, n % NODES) for n in range(effort.changes + 1)]

    def run(self) -> None:
        """Do all of it; nothing of it is there afterwards."""
        self._others.appear(min(self._size, NODES))
        self._others.announce(self._records)
        try:
            self._come()
            self._change()
            if self._size == MOST:
                self._look_around()
            self._restart()
            self._reboot()
            self._burst()
        finally:
            self._forwarding.close()
            self._plugin.stop()
            self._network.die_with_host()

    @property
    def _rows(self) -> Rows:
        return rows_of(self._records)

    def _note(self, measure: Measure, value: float) -> None:
        self._figures.add(measure, OURS, value)

    def _note_etcd(self, whole: Measure, value: float) -> None:
        self._figures.add(replace(whole, name=f"{whole.name}: etcd's part"), ETCD, value)

    def _come(self) -> None:
        """A plugin that has never run, then the first container of the network on this host."""
        self._note(READY, self._plugin.start())
        time.sleep(1)
        self._note(IDLE, self._plugin.memory())
        read = self._others.read(self._network.id)
        began = time.perf_counter()
        self._network.create()
        self._network.join()
        joined = time.perf_counter()
        ended = self._forwarding.await_exactly(self._rows)
        self._note(seconds(f"network of {self._size} created and joined"), joined - began)
        rows = seconds(f"network of {self._size} created and joined, to all rows")
        self._note(rows, ended - began)
        self._note_etcd(rows, read)

    def _change(self) -> None:
        """One endpoint more, and one less, each by itself."""
        added = seconds(f"one endpoint announced among {self._size}, to its rows")
        removed = seconds(f"one endpoint withdrawn among {self._size}, to no rows")
        for one in self._spare[: self._effort.changes]:
            (address, (mac, vtep)) = next(iter(rows_of([one]).items()))
            began = time.perf_counter()
            self._others.announce([one])
            put = time.perf_counter()
            ended = until(lambda: self._forwarding.has(address, mac, vtep))  # noqa: B023
            self._note(added, ended - began)
            self._note_etcd(added, put - began)
            self._rest_a_moment()
            began = time.perf_counter()
            self._others.withdraw([one])
            self._note(removed, until(lambda: self._forwarding.lacks(address, mac)) - began)  # noqa: B023
            self._rest_a_moment()

    def _rest_a_moment(self) -> None:
        """Let the plugin finish with what it does after the rows are there."""
        time.sleep(0.02)
        until(lambda: self._share(0.05) < 0.05)

    def _share(self, duration: float) -> float:
        """Share of a CPU that the plugin takes in the next *duration* seconds."""
        before = self._plugin.cpu()
        time.sleep(duration)
        return (self._plugin.cpu() - before) / duration

    def _look_around(self) -> None:
        """Memory, CPU at rest, and a row removed by hand."""
        self._note(LOADED, self._plugin.memory())
        self._be_quiet()
        self._spoil()

    def _be_quiet(self) -> None:
        """In the longer form one audit, every 30 seconds, falls into it."""
        slices = [self._share(1.0) for _ in range(round(self._effort.rest))]
        whole = Measure(PART, f"CPU at rest, {MOST} remote endpoints, audits included", "% of a core")
        calm = Measure(PART, f"CPU at rest, {MOST} remote endpoints, median second", "% of a core")
        self._note(whole, 100 * statistics.mean(slices))
        self._note(calm, 100 * statistics.median(slices))
        if self._effort.rest > 30:
            # An audit may fall into two of the slices.
            worst = max(a + b for a, b in pairwise(slices))
            self._note(seconds(f"CPU of an audit, {MOST} remote endpoints"), worst)

    def _spoil(self) -> None:
        """A hand removes both rows of an endpoint."""
        address, (mac, vtep) = next(iter(self._rows.items()))
        time.sleep(1.1)  # the kernel's news are looked at once a second
        before, began = self._plugin.cpu(), time.perf_counter()
        self._forwarding.remove(address, mac)
        ended = until(lambda: self._forwarding.has(address, mac, vtep))
        self._rest_a_moment()
        self._note(seconds(f"row removed by hand among {MOST}, to right again"), ended - began)
        self._note(seconds(f"CPU of mending a row among {MOST}"), self._plugin.cpu() - before)

    def _restart(self) -> None:
        """The plugin ends and starts; meanwhile one endpoint has come and one has gone."""
        self._plugin.stop()
        gone, new = self._records[0], self._spare[-1]
        self._others.withdraw([gone])
        self._others.announce([new])
        self._records = [*self._records[1:], new]
        self._start(FULL)

    def _reboot(self) -> None:
        """The host starts anew: nothing is in the kernel, and the engine starts the container again."""
        self._plugin.stop()
        self._forwarding.close()
        self._network.die_with_host()
        self._forwarding = self._network.forwarding()
        self._start(EMPTY, self._network.join)

    def _start(self, what: str, then: Callable[[], None] = lambda: None) -> None:
        began = time.perf_counter()
        ready = self._plugin.start()
        then()
        ended = self._forwarding.await_exactly(self._rows)
        self._note(seconds(f"plugin's start to its first answer, {self._size} known, {what}"), ready)
        self._note(seconds(f"plugin's start to all rows right, {self._size} known, {what}"), ended - began)
        self._rest_a_moment()

    def _burst(self) -> None:
        """All endpoints come at once, to a host that knows none."""
        self._others.withdraw(self._records)
        self._forwarding.await_exactly({})
        self._rest_a_moment()
        before, began = self._plugin.cpu(), time.perf_counter()
        self._others.announce(self._records)
        put = time.perf_counter()
        ended = self._forwarding.await_exactly(self._rows)
        self._rest_a_moment()
        measure = seconds(f"{self._size} endpoints announced at once, to all rows")
        self._note(measure, ended - began)
        self._note_etcd(measure, put - began)
        self._note(seconds(f"CPU of {self._size} endpoints announced at once"), self._plugin.cpu() - before)


def compare_writers(figures: Figures, folder: Path) -> None:
    """The same rows by our kernel wrapper and by iproute2, each on a device of its own."""
    writers: dict[str, Callable[[Path, Rows], None]] = {OURS: write_ourselves, IPROUTE2: write_by_iproute2}
    wanted = rows_of(record(NetworkId("kernel"), n, n % NODES) for n in range(MOST))
    for number, (subject, write) in enumerate(writers.items()):
        figures.add(KERNEL, subject, timed_in_space(folder / str(number), write, wanted))


NAMESPACE, DEVICE = "pyoverlay-rows", "vx9001"


def timed_in_space(folder: Path, write: Callable[[Path, Rows], None], wanted: Rows) -> float:
    """Return the seconds that *write* takes on a new VXLAN device in a namespace pinned in *folder*."""
    with closing(NetlinkKernel(folder)) as kernel:
        mark, mac = "pyoverlay rows", Mac("02:44:00:00:00:01")
        above: list[KernelObject] = [
            Namespace(NAMESPACE),
            Bridge(NAMESPACE, "br9001", mac, FALLBACK_UNDERLAY.mtu, mark),
            Vxlan(NAMESPACE, DEVICE, Vni(9001), 4789, None, "br9001", mark),
        ]
        assert not kernel.apply([Set(obj) for obj in above])
        began = time.perf_counter()
        write(folder, wanted)
        took = time.perf_counter() - began
        found = kernel.read_place(NAMESPACE)
        assert len(found) == len(above) + 2 * len(wanted)
        kernel.apply(diff({}, found))
    return took


def write_ourselves(folder: Path, wanted: Rows) -> None:
    """As the plugin does."""
    with closing(NetlinkKernel(folder)) as kernel:
        fdb = [Set(FdbEntry(NAMESPACE, DEVICE, mac, vtep)) for mac, vtep in wanted.values()]
        neighbours = [Set(Neighbour(NAMESPACE, DEVICE, address, mac)) for address, (mac, _) in wanted.items()]
        assert not kernel.apply([*fdb, *neighbours])


def write_by_iproute2(folder: Path, wanted: Rows) -> None:
    """As a script would: two programs, each with all of its rows on standard input."""
    fdb = [f"fdb replace {mac} dev {DEVICE} dst {vtep} self permanent" for mac, vtep in wanted.values()]
    neighbours = [
        f"neigh replace {address} lladdr {mac} dev {DEVICE} nud permanent"
        for address, (mac, _) in wanted.items()
    ]
    for program, lines in (("bridge", fdb), ("ip", neighbours)):
        command = ["nsenter", f"--net={folder / NAMESPACE}", program, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)


def load_store(figures: Figures, store: Store, others: Others, count: int) -> None:
    """Fill etcd with the endpoints of as many networks as it takes, a hundred on each host."""
    others.clear()
    others.appear(NODES)
    rate = Measure(PART, f"records put into etcd, {BATCH} in a transaction", "1/s", "more")
    for number in range(count // MOST):
        records = [record(NetworkId(f"load{number}"), n, n % NODES) for n in range(MOST)]
        began = time.perf_counter()
        others.announce(records)
        figures.add(rate, ETCD, MOST / (time.perf_counter() - began))
    rate = Measure(PART, "records put into etcd by 8 hosts, one in a transaction", "1/s", "more")
    figures.add(rate, ETCD, rate_of_single_puts(store, seconds=2.0))
    others.compact()
    figures.add(memory(f"etcd's file, {count} records"), ETCD, store.size())
    figures.add(memory(f"etcd's memory, {count} records"), ETCD, store.memory())


def rate_of_single_puts(store: Store, seconds: float, hosts: int = 8) -> float:
    """Records a second when each of *hosts* puts one after the other."""

    def put(host: int) -> int:
        with closing(Others(store.member)) as others:
            end, count = time.perf_counter() + seconds, 0
            while time.perf_counter() < end:
                others.announce([record(NetworkId("load0"), hosts * (count % 1000) + host, host)])
                count += 1
        return count

    with ThreadPoolExecutor(hosts) as pool:
        return sum(pool.map(put, range(hosts))) / seconds


def report(figures: Figures) -> None:
    """Print medians, and what the design asks."""
    for figure in figures.all():
        measure = figure.measure
        for subject, samples in figure.samples.items():
            line = f"{measure.name:75} {subject:24} {figure.median(subject):10.4g} {measure.unit:12}"
            spread = f"{min(samples):.4g} to {max(samples):.4g}, n={len(samples)}"
            limit = LIMITS.get(measure) if subject == OURS else None
            asked = f"   {figure.median(subject) / limit:.2f} of the {limit:g} asked" if limit else ""
            print(f"{line} {spread:28}{asked}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    figures = Figures()
    if arguments.json:  # in namespaces of our own, see apart
        with tempfile.TemporaryDirectory() as folder:
            measure(figures, QUICK if arguments.quick else WHOLE, Path(folder))
        print(json.dumps(figures.dump()))
    else:
        run(figures, quick=arguments.quick)
        report(figures)


if __name__ == "__main__":
    main()
