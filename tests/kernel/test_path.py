"""Hosts whose cards, or the path between them, differ in MTU: what is sent arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.cluster.path import PathMtu
from driver.cluster.probe import answering
from plugin.wiring.runtime import lower_mtus
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, datagrams, running

pytestmark = pytest.mark.kernel


class Agreeing:
    """Two machines on a wire, each with the part that agrees on an MTU."""

    def __init__(self, machines: list[Machine], parts: list[PathMtu]) -> None:
        self.machines = machines
        self._parts = parts
        for machine in machines:
            machine.create("n1", "10.1.0.0/24", 7001)

    def start(self) -> None:
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def agree_on(self, mtu: int) -> bool:
        return eventually(lambda: [m.wish.state.host.path_mtu for m in self.machines] == [mtu, mtu])

    def cards(self, *mtus: int) -> None:
        for machine, mtu in zip(self.machines, mtus, strict=True):
            machine.host.run(f"ip link set u0 mtu {mtu}")
        known = [[mtu, other] for mtu, other in zip(mtus, reversed(mtus), strict=True)]
        assert eventually(lambda: [self._known(machine) for machine in self.machines] == known)

    def _known(self, machine: Machine) -> list[int | None]:
        state = machine.wish.state
        return [state.mtu, *(node.mtu for node in state.peers.nodes.values())]


def mtu_of(container: Space) -> int:
    (link,) = container.json("ip -j link show eth0")
    return int(link["mtu"])


@pytest.fixture
def agreeing(hosts: Callable[[], Host]) -> Iterator[Agreeing]:
    with running([hosts(), hosts()]) as machines:

        def part(machine: Machine) -> PathMtu:
            inside = machine.host.inside
            return PathMtu(
                machine.wish,
                probe=lambda vteps, size: inside(lambda: answering(vteps, size)),
                lower=lambda state: lower_mtus(state, Path),
                again=0.1,
            )

        made = Agreeing(machines, [part(machine) for machine in machines])
        try:
            yield made
        finally:
            made.stop()


def test_a_smaller_card_elsewhere_counts_for_all_and_for_who_runs_already(agreeing: Agreeing) -> None:
    a, b = agreeing.machines
    agreeing.start()
    assert agreeing.agree_on(1500)
    one, two = a.attach("n1", "10.1.0.11"), b.attach("n1", "10.1.0.12")
    assert [mtu_of(one), mtu_of(two)] == [1450, 1450]
    assert datagrams(one, two, "10.1.0.12", 1422) == [True] * 5
    agreeing.cards(1500, 1400)
    assert agreeing.agree_on(1400)
    assert eventually(lambda: [mtu_of(one), mtu_of(two)] == [1350, 1350])
    assert datagrams(one, two, "10.1.0.12", 1322) == [True] * 5
    assert datagrams(one, two, "10.1.0.12", 1422) == [True] * 5, "cut by the sender's kernel"
    assert mtu_of(a.attach("n1", "10.1.0.21")) == 1350
    agreeing.cards(1500, 1500)
    assert agreeing.agree_on(1500)
    assert mtu_of(one) == 1350, "it is not raised under a running program"
    assert mtu_of(a.attach("n1", "10.1.0.22")) == 1450


def test_large_cards_count_only_where_the_path_is_as_large(
    agreeing: Agreeing, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = agreeing.machines
    for machine in agreeing.machines:  # what is larger than the usual is lost on the way, without a word
        machine.host.run(
            "nft 'table netdev small { chain in { type filter hook ingress device u0 priority 0;"
            " ether type ip ip length > 1500 drop; }; }'"
        )
    agreeing.cards(9000, 9000)
    agreeing.start()
    assert eventually(lambda: caplog.text.count("did not answer a packet of 9000 bytes") == 2)
    assert agreeing.agree_on(1500)
    one, two = a.attach("n1", "10.1.0.11"), b.attach("n1", "10.1.0.12")
    assert [mtu_of(one), mtu_of(two)] == [1450, 1450]
    assert datagrams(one, two, "10.1.0.12", 4000) == [True] * 5
    for machine in agreeing.machines:
        machine.host.run("nft delete table netdev small")
    assert agreeing.agree_on(9000)
    three, four = a.attach("n1", "10.1.0.21"), b.attach("n1", "10.1.0.22")
    assert [mtu_of(three), mtu_of(four)] == [8950, 8950]
    assert datagrams(three, four, "10.1.0.22", 8922) == [True] * 5
