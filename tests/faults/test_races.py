"""Duplicated, late, empty, reordered and concurrent calls over the HTTP edge; nothing is left in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.program import FakeGround, Program, RealGround

NETWORKS = [f"net{i}".ljust(25, "x") for i in range(3)]
CALLS = ("CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint", "DeleteNetwork")
WEIGHTS = (3, 6, 6, 4, 4, 1)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    ground = FakeGround() if request.param == "fake" else RealGround(tmp_path)
    program = Program(tmp_path, ground)
    yield program
    program.stop()
    ground.close()


def body(call: str, net: int, ep: int, variety: int = 0) -> dict[str, Any]:
    """A request; *variety* changes what a network is made of."""
    request: dict[str, Any] = {"NetworkID": NETWORKS[net]}
    if call == "CreateNetwork":
        pool, gateway = f"10.{60 + net}.0.0/24", f"10.{60 + net}.0.1/24"
        generic = {"mtu": str(1400 + variety), "vni": str(70001 + net + 10 * variety)}
        request["IPv4Data"] = [{"AddressSpace": "x", "Pool": pool, "Gateway": gateway, "AuxAddresses": None}]
        request["IPv6Data"] = []
        request["Options"] = {"com.docker.network.generic": generic}
    elif "Network" not in call:
        request["EndpointID"] = endpoint(net, ep)
    if call == "CreateEndpoint":
        address = f"10.{60 + net}.0.{10 + ep}/24"
        request |= {"Interface": {"Address": address, "AddressIPv6": "", "MacAddress": ""}, "Options": {}}
    if call == "Join":
        request |= {"SandboxKey": "/run/x", "Options": {}}
    return request


def endpoint(net: int, ep: int) -> str:
    return f"{net}{ep:03x}" * 16


def call(program: Program, name: str, net: int, ep: int = 0, variety: int = 0) -> None:
    program.must(f"NetworkDriver.{name}", body(name, net, ep, variety))


def end_all(program: Program, nets: int = 3, eps: int = 5) -> None:
    """Remove everything, as an engine that goes; then nothing may be left."""
    for net in range(nets):
        for ep in range(eps):
            for name in ("Leave", "DeleteEndpoint"):
                call(program, name, net, ep)
        call(program, "DeleteNetwork", net)
    state = program.wish.state
    assert (state.networks, state.endpoints, state.joining) == ({}, {}, {})
    assert program.peering.wait_published(10)
    assert [key for key in program.cluster.dump() if "endpoints" in key] == []
    assert program.ground.leftovers() == []
    assert list(program.ground.kernel.namespaces()) == []
    assert [a for a in program.answers if "internal error" in a[2]] == []


@pytest.mark.parametrize("seed", range(4))
def test_random_calls_from_many_threads(program: Program, seed: int) -> None:
    print(f"seed {seed}")

    def walk(thread: int) -> None:
        random = Random(seed * 1000 + thread)
        for _ in range(40):
            name = random.choices(CALLS, WEIGHTS)[0]
            request = body(name, random.randrange(3), random.randrange(5), random.randrange(2))
            for _ in range(random.choice((1, 1, 1, 2))):
                program.call(f"NetworkDriver.{name}", request, empty=random.random() < 0.05)

    at_once([lambda t=t: walk(t) for t in range(6)])  # type: ignore[misc]
    unexpected = {a for a in program.answers if a[1] == 500 and "not known on this host" not in a[2]}
    assert unexpected == set()
    program.quiet()
    have, want = program.kernel_and_wish(NETWORKS)
    assert have == want
    assert program.call("NetworkDriver.Leave", None, empty=True)[0] == 400
    end_all(program)


def test_fifty_endpoints_at_once(program: Program) -> None:
    call(program, "CreateNetwork", 0)

    def attach(ep: int) -> None:
        call(program, "CreateEndpoint", 0, ep)
        call(program, "Join", 0, ep)

    at_once([lambda n=n: attach(n) for n in range(50)])  # type: ignore[misc]
    program.quiet()
    have, want = program.kernel_and_wish(NETWORKS)
    assert have == want
    at_once([lambda n=n: call(program, "DeleteEndpoint", 0, n) for n in range(50)])  # type: ignore[misc]
    end_all(program, eps=50)


def test_out_of_order(program: Program) -> None:
    """Leave twice, DeleteEndpoint without Leave, the same EndpointID again, changed options beneath it."""
    call(program, "CreateNetwork", 0)
    for _ in range(2):
        call(program, "CreateEndpoint", 0, 1)
        call(program, "Join", 0, 1)
        call(program, "CreateNetwork", 0, variety=1)
        program.quiet()
        have, want = program.kernel_and_wish(NETWORKS)
        assert have == want
        call(program, "Leave", 0, 1)
        call(program, "Leave", 0, 1)
        call(program, "CreateEndpoint", 0, 2)
        call(program, "Join", 0, 2)
        call(program, "CreateNetwork", 0)
        call(program, "DeleteEndpoint", 0, 2)
        call(program, "DeleteEndpoint", 0, 1)
    end_all(program)


@pytest.mark.parametrize("name", ["Leave", "DeleteEndpoint", "DeleteNetwork"])
def test_taken_away_while_join_waits(program: Program, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel holds still until the other call is in; Join then ends, well or with a sentence."""
    call(program, "CreateNetwork", 0)
    call(program, "CreateEndpoint", 0, 1)
    waiting, go = threading.Event(), threading.Event()
    apply = program.ground.kernel.apply

    def slow(ops: Any) -> Any:
        waiting.set()
        assert go.wait(10)
        return apply(ops)

    monkeypatch.setattr(program.ground.kernel, "apply", slow)
    with ThreadPoolExecutor(2) as pool:
        join = pool.submit(program.call, "NetworkDriver.Join", body("Join", 0, 1))
        assert waiting.wait(10)
        other = pool.submit(call, program, name, 0, 1)
        threading.Event().wait(0.2)
        go.set()
        status, text = join.result()
        other.result()
    assert status == 200 or "not known on this host" in text
    program.quiet()
    have, want = program.kernel_and_wish(NETWORKS)
    assert have == want
    end_all(program)


@pytest.mark.kernel
def test_two_hundred_networks(tmp_path: Path) -> None:
    """Created, joined, left and removed, a dozen at a time."""
    ground = RealGround(tmp_path)
    program = Program(tmp_path, ground)
    try:
        at_once([lambda n=n: _ten_networks(program, n) for n in range(20)])  # type: ignore[misc]
        end_all(program, nets=0)
    finally:
        program.stop()
        ground.close()


def _ten_networks(program: Program, first: int) -> None:
    for number in range(10 * first, 10 * first + 10):
        for name in ("CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint", "DeleteNetwork"):
            request = body(name, 0, 0) | {"NetworkID": f"n{number:03}".ljust(25, "y")}
            if name == "CreateNetwork":
                request["Options"] = {}
            if "EndpointID" in request:
                request["EndpointID"] = f"{number:04x}" * 16
            program.must(f"NetworkDriver.{name}", request)


def at_once(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()
