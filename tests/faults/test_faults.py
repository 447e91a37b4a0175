"""Each fault on real engines, under traffic that is counted."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from _pytest.mark import ParameterSet

from tests.e2e.containers import Container, eventually
from tests.faults.faults import FAULTS, Fault, Traffic
from tests.faults.meters import QUIET_MS
from tests.faults.scene import Reading, Scene
from tests.lab import Host

SLACK = 2.0
"""Seconds within which cut traffic must go on after the fault's end, over the fault's own bound for rows."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        metafunc.parametrize("fault", [case(fault) for fault in FAULTS])


def case(fault: Fault) -> ParameterSet:
    marks = [pytest.mark.lab, pytest.mark.timeout(600)]
    if not fault.smoke:
        marks.append(pytest.mark.faults)
    return pytest.param(fault, id=fault.name.replace(" ", "-"), marks=marks)


@pytest.mark.lab
def test_the_meters_lose_nothing_when_nothing_happens(stage: Scene) -> None:
    """What the meter itself loses: the measure of all that follows."""
    reading = watched(stage, stage.worker, 3.0)
    assert reading.lost == 0, reading
    assert reading.there.sent > 2500, reading
    assert reading.stream.bytes > 400_000, reading
    assert reading.whole, reading


def watched(stage: Scene, host: Host, seconds: float) -> Reading:
    meter = stage.meter(stage.lab.host("h2"), host)
    time.sleep(seconds)
    return meter.stop()


def test_a_fault(stage: Scene, fault: Fault, rows: list[tuple[str, ...]]) -> None:
    hurt = fault.hosts(stage)
    whole = [host for host in stage.lab.hosts if host not in hurt]
    with ExitStack() as stack:
        others = stage.meter(whole[0], whole[1])
        stack.callback(others.abandon)
        own = stage.meter(whole[-1], hurt[0]) if fault.traffic is not Traffic.DEAD else None
        stack.callback(own.abandon if own else lambda: None)
        undone, took = happen(stage, fault, hurt, whole)
        seen, felt = others.stop(), own.stop() if own else None
    rows.append(row(fault, seen, felt, undone, took))
    print(f"{fault.name}: right after {took:.2f} s\n{seen}\n{felt}")
    assert seen.whole, seen
    assert seen.stream.stall_ms < QUIET_MS + max(seen.there.own_gap_ms, seen.back.own_gap_ms), seen
    if felt is not None:
        judge(fault, felt, undone)


def happen(stage: Scene, fault: Fault, hurt: list[Host], whole: list[Host]) -> tuple[float, float]:
    """Do the fault and undo it; return when that was, and how long it took until all was right again."""
    before = stage.ground.run(whole[0], stage.network) if fault.churn else None
    time.sleep(0.5)
    fault.do(stage)
    if before is not None:
        churn(stage, before, whole[1])
    time.sleep(fault.lasts)
    fault.undo(stage)
    undone = time.time()
    took = stage.checker.right_within(fault.bound)
    proof(stage, hurt[0])
    time.sleep(0.3)
    return undone, took


def churn(stage: Scene, before: Container, elsewhere: Host) -> None:
    """One container goes and another comes while the fault lasts."""
    before.remove()
    stage.ground.containers.remove(before)
    stage.ground.run(elsewhere, stage.network)


def proof(stage: Scene, host: Host) -> None:
    """The host that was hurt is of full use: a container starts there, everybody reaches it, and it goes."""
    assert eventually(lambda: stage.ground.offered(host), 30)
    fresh = stage.ground.run(host, stage.network)
    stage.checker.right_within(3)
    for container in [fresh, *stage.ground.containers]:
        if container not in stage.anchors.values():
            container.remove()
    stage.ground.containers[:] = stage.anchors.values()
    stage.checker.right_within(3)


def judge(fault: Fault, felt: Reading, undone: float) -> None:
    """Whether the traffic of the host that was hurt fared as it may."""
    assert not felt.stream.broken, felt
    if fault.traffic is Traffic.WHOLE:
        assert felt.whole, felt
    else:
        assert felt.lost > 0 or fault.traffic is Traffic.BLINK, f"the fault did nothing: {felt}"
        assert felt.last_loss - undone < SLACK, felt


def row(fault: Fault, seen: Reading, felt: Reading | None, undone: float, took: float) -> tuple[str, ...]:
    outage = f"{max(0.0, felt.last_loss - undone):.2f}" if felt and felt.lost else "0" if felt else "-"
    own, stall = (str(felt.lost), f"{felt.stream.stall_ms:.0f}") if felt else ("-", "-")
    return (fault.name, str(seen.lost), own, outage, f"{took:.2f}", f"{seen.stream.stall_ms:.0f} / {stall}")
