"""The real product killed before each of its writes in turn, on the real kernel with a real etcd.

    unshare --net --mount --fork --kill-child python -m tests.faults.crashing ETCD FOLDER [beside] CALL...

The namespace that this runs in is the host. A trial is two processes, forked from this warm one: the first
makes what the call needs and dies in the call; the second starts on what is left, hears what an engine says
then, and the world is compared with that of a run in which nobody died.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import ANY, patch

from driver.cluster.ledger.codec import ROOT, encode_endpoint, encode_node, endpoint_key, node_key
from driver.kernel import netns
from driver.reconcile.networks import NetworkReconciler
from driver.wish.disk import WishFile
from driver.wish.model import Host
from driver.wish.records import EndpointRecord, NodeRecord
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId
from plugin.settings import Settings, load
from plugin.wiring import make_runtime, runtime
from tests.cluster.harness import EtcdMember, b64, start_members
from tests.faults.points import KILLED, Points
from tests.faults.story import (
    FIRST,
    GATEWAY,
    GIVE_BACK,
    NEIGHBOUR,
    NETWORK,
    TAKE,
    Step,
    after_failure,
    life,
    next_round,
    release,
)
from tests.faults.world import differences, snapshot

VTEP = ip_address("192.0.2.1")
PEER = NodeId("peer")
INERT = ("CreateNetwork", "CreateEndpoint", "Leave", "DeleteEndpoint", "DeleteNetwork")
HOST = Host(NodeId("node"), VTEP, member=runtime.this_machine())
"""As an engine by itself has it: the identity is this machine's, so that it lasts."""
PATIENCE = 4.0
"""Seconds in which the world must have become what it should be."""
_ROW = EndpointRecord(
    NetworkId(NETWORK), ip_address("10.62.0.9"), Mac("02:42:0a:3e:00:09"), PEER, EndpointId("e")
)

World = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """A host of its own: folders, a place for containers, the store's address."""

    folder: Path
    sandbox: int
    member: EtcdMember
    scope: str

    def settings(self) -> Settings:
        return load(
            {
                "PYOVERLAY_SCOPE": self.scope,
                "PYOVERLAY_STORE": self.member.url,
                "PYOVERLAY_VTEP": str(VTEP),
                "PYOVERLAY_STATE_DIR": str(self.folder / "state"),
                "PYOVERLAY_RUN_DIR": str(self.folder / "run"),
            }
        )

    def look(self) -> World:
        return snapshot(self.folder, self.sandbox, self.member.dump())

    def move(self, step: Step) -> str:
        """Do the engine's own deed; return what went wrong."""
        device, back = f"pyo{step.endpoint[:12]}", step.method == GIVE_BACK
        here, there = f"/proc/{os.getpid()}/ns/net", f"/proc/{os.getpid()}/fd/{self.sandbox}"
        start, end = (there, here) if back else (here, there)
        command = ["nsenter", f"--net={start}", "ip", "link", "set", device, "netns", end]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # The engine logs that a device is not there to be moved back, and goes on.
        return "" if back or done.returncode == 0 else f"{device} cannot be moved: {done.stderr}"


class Life:
    """A process of the product's, within a forked child."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.runtime = make_runtime(trial.settings(), sys.exit)
        self.client = self.runtime.start().test_client()

    def do(self, step: Step) -> str:
        """Carry out a step; return what went wrong."""
        if step.method in (TAKE, GIVE_BACK):
            return self.trial.move(step)
        answer = self.client.post(f"/{step.method}", json=step.body)
        return "" if answer.status_code == 200 else f"{step.name}: {answer.status_code} {answer.text}"

    def settle(self) -> None:
        """Wait until what was said last is done, here and in the store."""
        _, revision = self.runtime.wish.snapshot()
        for network in list(self.runtime.wish.state.networks):
            self.runtime.networks.wait_applied(network, revision, 10)
        deadline = time.monotonic() + 5
        while not self.runtime.peering.wait_published(1) and time.monotonic() < deadline:
            time.sleep(0.01)  # it answers at once while there is no connection yet


def forked(work: Callable[[Callable[[Any], None]], None]) -> tuple[list[Any], int]:
    """Do *work* in a child; return what it told and its exit status."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        status = 1
        try:
            work(lambda told: _tell(write, told))
            status = 0
        except BaseException as failure:
            import traceback

            _tell(write, {"failed": "".join(traceback.format_exception(failure))})
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = [json.loads(line) for line in pipe]
    return told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _tell(pipe: int, told: Any) -> None:
    os.write(pipe, json.dumps(told).encode() + b"\n")


def first_life(trial: Trial, before: Sequence[Step], call: Step, fatal: int) -> tuple[int, list[str], bool]:
    """Do what comes before, and the call; return exit status, writes passed, and whether it answered."""

    def work(tell: Callable[[Any], None]) -> None:
        points = Points()
        points.install()
        life_ = Life(trial)
        for step in before:
            if problem := life_.do(step):
                raise AssertionError(problem)
        life_.settle()
        points.arm(fatal)
        problem = life_.do(call)
        tell({"answered": problem})
        life_.settle()
        points.disarm()
        tell({"passed": points.passed})

    told, status = forked(work)
    failed = [t["failed"] for t in told if "failed" in t]
    assert not failed, failed[0]
    answered = [t["answered"] for t in told if "answered" in t]
    assert answered in ([], [""]), answered
    passed: list[str] = next((t["passed"] for t in told if "passed" in t), [])
    return status, passed, bool(answered)


def second_life(trial: Trial, parts: Sequence[tuple[Sequence[Step], World]]) -> list[str]:
    """Start on what is left, go on with each part; return every call that failed and every difference."""

    def work(tell: Callable[[Any], None]) -> None:
        life_ = Life(trial)
        for steps, expected in parts:
            for step in steps:
                if problem := life_.do(step):
                    tell({"wrong": problem})
            life_.settle()
            if wrong := _differences_in_the_end(trial, expected):
                tell({"wrong": f"after {steps[-1].name if steps else 'the start'}: {wrong}"})

    told, _ = forked(work)
    return [text for t in told for text in t.values()]


def _differences_in_the_end(trial: Trial, expected: World) -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        wrong = differences(expected, trial.look())
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.02)


class Bench:
    """Makes trials, and knows what the world should be after each step of the story."""

    def __init__(self, etcd: Path, folder: Path, *, beside: bool) -> None:
        self.folder = folder
        self.scope = "local" if beside else "global"
        self.story = life(NETWORK, FIRST, beside=beside)
        (self.member,) = start_members(etcd, folder / "etcd", 1)
        self.count = 0
        self.worlds = self._worlds()

    def trial(self) -> Trial:
        """Make a fresh host."""
        self.count += 1
        folder = self.folder / f"t{self.count}"
        (folder / "state").mkdir(parents=True)
        WishFile(folder / "state" / "state.json").save(State(HOST))
        self.member.call("kv/deleterange", key=b64(ROOT), range_end=b64(ROOT[:-1] + "0"))
        for key, value in (
            (node_key(PEER), encode_node(NodeRecord(PEER, ip_address("192.0.2.2")))),
            (endpoint_key(_ROW.network, _ROW.address), encode_endpoint(_ROW)),
        ):
            self.member.call("kv/put", key=b64(key), value=b64(value))
        return Trial(folder, netns.create(), self.member, self.scope)

    def end(self, trial: Trial) -> None:
        """Remove all that a trial left."""
        os.close(trial.sandbox)
        for pin in (trial.folder / "run" / "netns").glob("*"):
            netns.unpin(pin)
        for name in [n for n in snapshot(trial.folder, None, {})["host"] if n.startswith("pyo")]:
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
        shutil.rmtree(trial.folder)

    def _worlds(self) -> list[World]:
        """The world after the first 0, 1, 2 ... steps of the story, when nobody dies."""
        trial = self.trial()

        def work(tell: Callable[[Any], None]) -> None:
            life_ = Life(trial)
            life_.settle()
            tell(trial.look())
            for step in self.story:
                if problem := life_.do(step):
                    raise AssertionError(problem)
                life_.settle()
                tell(trial.look())

        told, status = forked(work)
        self.end(trial)
        assert status == 0, told[-1]
        return told

    def crash(self, call: int, fatal: int, variant: str) -> tuple[bool, list[str], list[str]]:
        """Run one trial; return whether the call outlived *fatal*, what it wrote and what was wrong."""
        trial = self.trial()
        try:
            status, passed, answered = first_life(trial, self.story[:call], self.story[call], fatal)
            assert status in (0, KILLED), status
            if answered and self.story[call].name == "Join":  # it does not wait for a new plugin
                assert not trial.move(self.story[call + 1])
                call += 1
            wrong = second_life(trial, self._parts(call, variant, answered=answered))
            return status == 0, passed, wrong
        finally:
            self.end(trial)

    def _parts(self, call: int, variant: str, *, answered: bool) -> list[tuple[list[Step], World]]:
        story, worlds, name = self.story, self.worlds, self.story[call].name
        # Records that the engine will never speak of again may stay on the disk, if they do nothing: of an
        # unanswered call that was done all the same, or of what a new process leaves out by itself.
        lost = NETWORK if name in ("CreateNetwork", "DeleteNetwork") else FIRST[:4]
        if name == "Leave" and (answered or variant == "again"):
            # A new process takes the pair of one that left down by itself: look after DeleteEndpoint.
            deleted = call + 3
            assert story[deleted - 1].name == "DeleteEndpoint"
            first = story[call + answered : deleted]
            return [(first, worlds[deleted] | {"forgotten": [lost]}), (story[deleted:], worlds[-1])]
        if answered and name == "CreateEndpoint":  # announced again only by Join
            return [(story[call + 1 :], worlds[-1])]
        if answered:
            return [([], worlds[call + 1]), (story[call + 1 :], worlds[-1])]
        if variant == "again":
            forgotten = {"forgotten": [lost] if name == "DeleteEndpoint" else []}
            return [([story[call]], worlds[call + 1] | forgotten), (story[call + 1 :], worlds[-1])]
        steps, equals = after_failure(story, call, modern=variant == "undone")
        forgotten = {"forgotten": [lost] if name in INERT else []}
        end = worlds[-1] | (forgotten if lost == NETWORK else {})
        if name in ("ReleaseAddress", "ReleasePool"):  # the lease stays until its pool goes, or asked for
            return [(steps, worlds[equals] | {"ipam": ANY}), (next_round(story, equals), end)]
        return [(steps, worlds[equals] | forgotten), (next_round(story, equals), end)]


def main(arguments: Sequence[str]) -> int:
    etcd, folder, *names = arguments
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run("ip link add eth0 type bridge; ip link set eth0 up", shell=True, check=True)
    subprocess.run(["ip", "address", "add", f"{VTEP}/24", "dev", "eth0"], check=True)
    # The audit is what notices what no call tells of.
    patch.object(runtime, "NetworkReconciler", partial(NetworkReconciler, audit_interval=0.3)).start()
    bench = Bench(Path(etcd), Path(folder), beside="beside" in names)
    bad = 0
    try:
        for number, step in enumerate(bench.story):
            # What belongs to the endpoint beside is like any other; a gateway's release does nothing.
            mine = step.endpoint in ("", FIRST) and step.body.get("Address") != NEIGHBOUR
            if step.name in names and mine and step != release(GATEWAY):
                bad += run(bench, number)
    finally:
        bench.member.kill()
    return 1 if bad else 0


def run(bench: Bench, number: int) -> int:
    """Kill one call at every write, in each variant; print what happened."""
    bad = 0
    step = bench.story[number]
    variants = ("again", "undone", "undone, old engine") if step.name == "Join" else ("again", "undone")
    for variant in variants:
        started = time.monotonic()
        fatal, done = 0, False
        writes: list[str] = []
        while not done:
            fatal += 1
            done, passed, wrong = bench.crash(number, fatal, variant)
            writes = passed or writes
            for text in wrong:
                bad += 1
                print(f"WRONG {step.name} {variant}, killed before write {fatal}: {text}", flush=True)
        seconds = time.monotonic() - started
        print(f"{step.name} ({step.body.get('Address', '')}) {variant}: {fatal - 1} points, {seconds:.1f} s")
        if variant == variants[0]:
            print("  " + ", ".join(writes), flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
