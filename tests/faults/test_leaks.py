"""Nothing grows: a thousand containers come and go (PYOVERLAY_CYCLES; fewer by default)."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.wish.disk import WishFile
from driver.wish.model import Host
from driver.wish.state import State
from driver.wish.values import NodeId
from tests.cluster.harness import EtcdMember, running, start_members
from tests.faults.program import VTEP, Program, RealGround
from tests.faults.story import GIVE_BACK, NETWORK, TAKE, attach, create, detach, remove
from tests.lab import etcd_binary

CYCLES = int(os.environ.get("PYOVERLAY_CYCLES", "120"))
WARM_UP = 20


@pytest.mark.kernel
@pytest.mark.store
@pytest.mark.timeout(1200)
def test_nothing_grows(tmp_path: Path) -> None:
    with running(start_members(etcd_binary(), tmp_path / "etcd", 1)) as (member,):
        ground = RealGround(tmp_path)
        disk = WishFile(tmp_path / "state.json")
        disk.save(State(Host(NodeId("node"), VTEP)))
        plane = EtcdControlPlane(NodeId("node"), lambda: [member.url])
        program = Program(tmp_path, ground, disk=disk, control=plane)
        try:
            _measure(program, ground, member)
        finally:
            program.stop()
            ground.close()
        assert member.dump() == {}


def _measure(program: Program, ground: RealGround, member: EtcdMember) -> None:
    before = _used()
    for number in range(CYCLES):
        if number == WARM_UP:
            before = _used()
        _cycle(program, number)
        program.answers.clear()
    after = _used()
    print(f"{CYCLES} cycles; descriptors, threads, KiB: {before} -> {after}")
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 1
    assert after[2] <= before[2] + 1024 + 8 * (CYCLES - WARM_UP), "more than 8 KiB a container"
    assert ground.leftovers() == []
    assert program.peering.wait_published(10)
    assert [key for key in member.dump() if "endpoints" in key] == []
    assert not program.ipam.state.pools
    assert (program.wish.state.networks, program.wish.state.endpoints) == ({}, {})


def _cycle(program: Program, number: int) -> None:
    endpoint = f"{number:08x}" * 8
    address = f"10.62.0.{2 + number % 200}"
    steps = [*attach(NETWORK, endpoint, address), *detach(NETWORK, endpoint, address)]
    for step in [*create(NETWORK), *steps, *remove(NETWORK)]:
        if step.method not in (TAKE, GIVE_BACK):
            program.must(step.method, step.body)


def _used() -> tuple[int, int, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * 4
