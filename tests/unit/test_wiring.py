"""Which parts run in which mode, and that exactly those which started are stopped."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial, reduce
from ipaddress import ip_address
from pathlib import Path

import pytest

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.wish.errors import KernelError
from driver.wish.model import Network
from driver.wish.state import with_network
from driver.wish.values import NetworkId
from plugin.settings import Settings, load
from plugin.wiring import make_runtime
from plugin.wiring.runtime import Runtime
from tests.fakes.kernel import FakeKernel
from tests.fakes.sandboxes import FakeSandboxes
from tests.unit.test_overlay import _soon

PARTS = {
    "NetworkReconciler": "runtime",
    "Recovery": "runtime",
    "LeaderEtcd": "swarm",
    "Peering": "runtime",
    "SandboxReconciler": "runtime",
    "ServiceWatch": "swarm",
    "Census": "runtime",
}
"""In the order in which they start, with the modules that make them."""
ALONE = ["NetworkReconciler", "Recovery", "Peering", "SandboxReconciler", "Census"]

Call = tuple[str, str, dict[str, bool]]


class StandIn:
    """A part that only writes down what is asked of it; *fails* names one whose start fails."""

    fails = ""
    wait = is_missing_containers = wait_tried = endpoints = None

    def __init__(self, name: str, calls: list[Call], *_: object, **__: object) -> None:
        self.name = name
        self.calls = calls

    def start(self) -> None:
        if self.name == self.fails:
            raise KernelError("no")
        self.calls.append(("start", self.name, {}))

    def stop(self, **how: bool) -> None:
        self.calls.append(("stop", self.name, how))


class Ground:
    """A host's folders, and a kernel in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = FakeKernel()
        self.joined = folder / "swarm" / "docker-state.json"
        self.joined.parent.mkdir()
        self.reasons: list[str] = []
        self.told = threading.Event()

    def settings(self, **given: str) -> Settings:
        folders = {
            name: str(self.folder / name.removesuffix("_DIR").lower())
            for name in ("STATE_DIR", "RUN_DIR", "SWARM_DIR")
        }
        values = {"VTEP": "192.0.2.1", **folders, **given}
        return load({f"PYOVERLAY_{name}": value for name, value in values.items()})

    def runtime(self, **given: str) -> Runtime:
        return make_runtime(self.settings(**given), self.restart)

    def restart(self, reason: str) -> None:
        self.reasons.append(reason)
        self.told.set()


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    made = Ground(tmp_path)
    monkeypatch.setattr("plugin.wiring.runtime.NetlinkKernel", lambda _: made.kernel)
    monkeypatch.setattr("plugin.wiring.runtime.NetlinkSandboxes", lambda _: FakeSandboxes())
    monkeypatch.setattr("plugin.wiring.runtime._MODE_POLL", 0.01)
    monkeypatch.setattr("plugin.settings._PLUGIN_RUN_DIR", tmp_path / "run")  # the managed plugin
    before = threading.active_count()
    yield made
    await_threads(before)


@pytest.fixture
def calls(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What is asked of the parts, for which others stand in that do nothing."""
    made: list[Call] = []
    monkeypatch.setattr("plugin.wiring.runtime._MOMENT", 30)  # they end when they are scheduled
    for name, module in PARTS.items():
        monkeypatch.setattr(f"plugin.wiring.{module}.{name}", partial(StandIn, name, made))
    return made


@pytest.mark.parametrize(("scope", "parts"), [("local", ALONE), ("global", list(PARTS))])
def test_the_parts_of_a_mode_start_in_order_and_stop_in_reverse(
    ground: Ground, calls: list[Call], scope: str, parts: list[str]
) -> None:
    runtime = ground.runtime(SCOPE=scope)
    client = runtime.start().test_client()
    assert client.post("/NetworkDriver.GetCapabilities").get_json()["Scope"] == scope
    assert calls == [("start", part, {}) for part in parts]
    calls.clear()
    runtime.stop()
    how = {"Peering": {"leave": False}}
    assert calls == [("stop", part, how.get(part, {})) for part in reversed(parts)]


def await_threads(number: int) -> None:
    """Wait until there are no more threads than *number*."""
    assert _soon(lambda: threading.active_count() <= number)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of parts that do not end before the test does."""
    names: set[str] = set()
    released = threading.Event()
    stop = StandIn.stop

    def stop_or_hang(part: StandIn, **how: bool) -> None:
        stop(part, **how)
        if part.name in names:
            released.wait()

    monkeypatch.setattr(StandIn, "stop", stop_or_hang)
    monkeypatch.setattr("plugin.wiring.runtime._STOP_SECONDS", 0.4)
    monkeypatch.setattr("plugin.wiring.runtime._MOMENT", 0.05)
    before = threading.active_count()
    yield names
    released.set()
    await_threads(before)


@pytest.mark.parametrize(
    "hung", [*PARTS, "Census ServiceWatch SandboxReconciler LeaderEtcd", " ".join(PARTS)]
)
def test_a_part_that_hangs_holds_up_no_other(
    ground: Ground,
    calls: list[Call],
    hanging: set[str],
    caplog: pytest.LogCaptureFixture,
    hung: str,
) -> None:
    hanging.update(hung.split())
    runtime = ground.runtime(SCOPE="global")
    runtime.start()
    runtime.stop()
    assert _soon(lambda: sorted(part for verb, part, _ in calls if verb == "stop") == sorted(PARTS))
    assert caplog.messages[-1].startswith("still busy, and ended with the process: ")


def test_it_stops_where_no_thread_can_be_had(
    ground: Ground, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = ground.runtime(SCOPE="global")
    runtime.start()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        runtime.stop()
    assert [part for verb, part, _ in calls if verb == "stop"] == list(PARTS)[::-1]


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_the_node_record_is_paused_first_whoever_hangs(
    ground: Ground, calls: list[Call], hanging: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose lease ends is taken for dead, and its containers with it."""
    hanging.update(PARTS.keys() - {"Peering"})
    stopped_at: list[float] = []
    stop = StandIn.stop

    def timed(part: StandIn, **how: bool) -> None:
        if part.name == "Peering":
            stopped_at.append(time.monotonic())
        stop(part, **how)

    monkeypatch.setattr(StandIn, "stop", timed)
    runtime = ground.runtime(SCOPE="global")
    runtime.start()
    began = time.monotonic()
    runtime.stop()
    assert stopped_at[0] - began < 5


def test_it_stops_in_time_while_engine_and_store_hang_and_there_are_500_networks(
    ground: Ground, tmp_path: Path
) -> None:
    before = threading.active_count()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as engine, socket.create_server(("127.0.0.1", 0)) as store:
        engine.bind(str(run_dir / "docker.sock"))
        engine.listen(100)  # and nobody accepts
        runtime = ground.runtime(SCOPE="global", STORE=f"http://127.0.0.1:{store.getsockname()[1]}")
        client = runtime.start().test_client()
        networks = [Network(NetworkId(f"n{number}"), ()) for number in range(500)]
        runtime.wish.change(lambda state: reduce(with_network, networks, state))
        assert client.post("/NetworkDriver.GetCapabilities").status_code == 200
        began = time.monotonic()
        runtime.stop()
        took = time.monotonic() - began
        print(f"stopped after {took:.2f} s")
        assert took < 6, "the engine kills after ten seconds, and calls under way have three of them"
    await_threads(before)


def test_with_a_store_of_the_users_the_leader_runs_none(ground: Ground, calls: list[Call]) -> None:
    runtime = ground.runtime(SCOPE="global", STORE="http://192.0.2.9:2379")
    runtime.start()
    assert [part for _, part, _ in calls] == [part for part in PARTS if part != "LeaderEtcd"]
    runtime.stop()


@pytest.mark.parametrize("failing", PARTS)
def test_after_a_failure_what_has_started_is_stopped_and_nothing_else(
    ground: Ground, calls: list[Call], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(StandIn, "fails", failing)
    runtime = ground.runtime(SCOPE="global")
    with pytest.raises(KernelError):
        runtime.start()
    runtime.stop()
    started = [part for verb, part, _ in calls if verb == "start"]
    assert started == list(PARTS)[: len(started)]
    assert [part for verb, part, _ in calls if verb == "stop"] == started[::-1]


def test_it_serves_and_leaves_no_thread(ground: Ground) -> None:
    runtime = ground.runtime()
    client = runtime.start().test_client()
    assert client.post("/NetworkDriver.GetCapabilities").get_json()["Scope"] == "local"
    runtime.stop()
    assert ground.kernel.closed


@pytest.mark.parametrize(
    ("before", "reason"), [(False, "the host has joined a Swarm"), (True, "the host has left the Swarm")]
)
def test_another_mode_asks_for_a_restart_and_leaves_nothing_in_the_store(
    ground: Ground, calls: list[Call], before: bool, reason: str
) -> None:
    if before:
        ground.joined.touch()
    runtime = ground.runtime()
    runtime.start()
    if before:
        ground.joined.unlink()
    else:
        ground.joined.touch()
    assert ground.told.wait(30)
    runtime.stop()
    assert ground.reasons == [reason]
    assert ("stop", "Peering", {"leave": True}) in calls


def test_a_mode_that_the_user_chose_lasts(ground: Ground) -> None:
    ground.joined.touch()
    assert not ground.settings(SCOPE="local").in_swarm
    assert ground.settings(SCOPE="auto").in_swarm
    ground.joined.unlink()
    assert ground.settings(SCOPE="global").in_swarm
    assert not ground.settings(SCOPE="auto").in_swarm


def test_an_ordinary_process_is_alone_whatever_the_engine_does(ground: Ground) -> None:
    """Swarm takes managed plugins only."""
    ground.joined.touch()
    assert not ground.settings(RUN_DIR="/elsewhere").in_swarm


def test_a_host_alone_takes_the_address_of_its_default_route(
    ground: Ground, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = ip_address("198.51.100.1")
    monkeypatch.setattr("driver.kernel.netlink.routes.default_source", lambda: address)
    assert ground.runtime(VTEP="").wish.state.host.vtep == address
    assert ground.runtime(VTEP="192.0.2.7").wish.state.host.vtep == ip_address("192.0.2.7")


def test_a_worker_finds_the_store_without_the_engines_socket(ground: Ground) -> None:
    noted = [{"node_id": "m", "addr": "192.0.2.7:2377"}]
    (ground.joined.parent / "state.json").write_text(json.dumps(noted))
    control = ground.runtime(SCOPE="global").peering._control
    assert isinstance(control, EtcdControlPlane)
    assert control._reader._endpoints() == ["https://192.0.2.7:2389"]
