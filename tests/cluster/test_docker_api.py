"""The engine's client: what each answer means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.swarm import docker_api
from driver.swarm.docker_api import DockerApi, EngineAway, Leadership, SwarmFacts
from tests.cluster.fake_engine import FakeEngine


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "docker.sock").start()
    yield engine
    engine.stop()


def test_what_a_manager_says(fake: FakeEngine) -> None:
    fake.managers = [
        "192.0.2.3:2377",
        "192.0.2.1:2377",
        "[2001:db8::1]:2377",
        "192.0.2.1:2377",
        "m4",
        "2001:db8::2",
    ]
    facts = DockerApi(fake.path).info()
    assert facts == SwarmFacts(
        state="active",
        node="node1",
        address="127.0.0.1",
        manager=True,
        managers=("192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::2", "m4"),
        port=4789,
        version=(28, 5),
    )
    assert facts.member is True


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("20.10.24+dfsg1", (20, 10)),
        ("29.6.0-rc.1", (29, 6)),
        ("29.10.0", (29, 10)),
        ("dev", (0, 0)),
        ("", (0, 0)),
        ("29", (0, 0)),
        ("99999.1", (0, 0)),
        (None, (0, 0)),
        (29.6, (0, 0)),
    ],
)
def test_the_version_of_the_engine(fake: FakeEngine, said: object, version: tuple[int, int]) -> None:
    fake.version = said
    assert DockerApi(fake.path).info().version == version


@pytest.mark.parametrize(
    ("said", "port"), [(7789, 7789), (0, None), (65536, None), ("7789", None), (True, None)]
)
def test_the_port_of_the_swarm(fake: FakeEngine, said: object, port: int | None) -> None:
    fake.port = said
    assert DockerApi(fake.path).info().port == port
    fake.manager = False
    assert DockerApi(fake.path).info().port is None, "a worker is not told"


@pytest.mark.parametrize(
    ("state", "member"), [("inactive", False), ("locked", None), ("pending", None), ("error", None)]
)
def test_a_node_that_is_not_active(fake: FakeEngine, state: str, member: bool | None) -> None:
    fake.state = state
    engine = DockerApi(fake.path)
    facts = engine.info()
    assert facts.member is member
    assert engine.leadership(facts) is (Leadership.NO if member is False else Leadership.UNKNOWN)


def test_who_leads(fake: FakeEngine) -> None:
    engine = DockerApi(fake.path)
    facts = engine.info()
    assert engine.leadership(facts) is Leadership.YES
    fake.leader = False
    assert engine.leadership(facts) is Leadership.NO
    fake.quorum = False
    assert engine.leadership(facts) is Leadership.UNKNOWN
    fake.manager = False
    assert engine.leadership(facts) is Leadership.UNKNOWN, "an error is no answer"
    calls = len(fake.calls)
    assert engine.leadership(engine.info()) is Leadership.NO
    assert len(fake.calls) == calls + 1, "a worker need not ask who leads"


def test_before_the_engine_was_asked_nothing_is_known(fake: FakeEngine) -> None:
    assert DockerApi(fake.path).leadership(SwarmFacts()) is Leadership.UNKNOWN


def test_an_engine_that_is_away(fake: FakeEngine) -> None:
    engine = DockerApi(fake.path)
    facts = engine.info()
    fake.stop()
    assert engine.leadership(facts) is Leadership.UNKNOWN
    with pytest.raises(EngineAway, match=r"docker\.sock"):
        engine.info()
    fake.path.unlink()
    with pytest.raises(EngineAway):
        engine.info()


def test_an_engine_that_hangs(fake: FakeEngine) -> None:
    fake.delay = 3
    with pytest.raises(EngineAway, match="timed out"):
        DockerApi(fake.path).info()


@pytest.mark.parametrize(
    "garbage", [b"no JSON", b"[]", b"{}", b'{"Swarm":null}', b'{"Swarm":{"LocalNodeState":7}}']
)
def test_an_answer_that_is_none(fake: FakeEngine, garbage: bytes) -> None:
    fake.garbage = garbage
    with pytest.raises(EngineAway):
        DockerApi(fake.path).info()
    facts = SwarmFacts("active", "node1", "127.0.0.1", manager=True)
    assert DockerApi(fake.path).leadership(facts) is Leadership.UNKNOWN


def test_an_engine_without_our_plugin_is_not_ours(fake: FakeEngine) -> None:
    """Whatever it says of its own Swarm and networks; it is asked again when the right one may be there."""
    fake.plugins = {"other"}
    engine = DockerApi(fake.path, "1f2e3d4c5b6a7988")
    questions: list[Callable[[], object]] = [
        engine.info,
        lambda: engine.list("networks"),
        lambda: engine.events("network"),
    ]
    for ask in questions:
        with pytest.raises(EngineAway, match=r"does not have this plugin \(1f2e3d4c5b6a\).*DOCKER_SOCKET"):
            ask()
    assert "/info" not in fake.calls
    fake.plugins = {"1f2e3d4c5b6a7988"}
    assert engine.info().node == "node1"
    asked = len(fake.calls)
    engine.info()
    assert fake.calls[asked:] == ["/info"], "once is enough"
    fake.stop()
    with pytest.raises(EngineAway):
        engine.info()
    fake.start()
    fake.plugins = set()
    with pytest.raises(EngineAway, match="does not have this plugin"):
        engine.info()


def test_a_socket_that_is_elsewhere_is_told_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(EngineAway, match=r"there is no such socket; PYOVERLAY_DOCKER_SOCKET"):
        DockerApi(tmp_path / "docker.sock").info()


@pytest.mark.parametrize("denied", ["info", "nodes", "networks", "services", "plugins"])
def test_what_is_denied_is_told_once_and_the_rest_is_answered(
    fake: FakeEngine, denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    docker_api._tell_of_denial.cache_clear()
    fake.denied, fake.plugins, fake.networks = {denied}, {"1f2e"}, {"n"}
    engine = DockerApi(fake.path, "1f2e")
    facts = SwarmFacts("active", "node1", "127.0.0.1", manager=True)
    asked: dict[str, Callable[[], object]] = {
        "info": engine.info,
        "nodes": lambda: engine.leadership(facts),
        "networks": lambda: engine.known_networks({"n"}),
        "services": lambda: engine.list("services"),
    }
    for _ in range(2):
        for what, ask in asked.items():
            if what == denied != "nodes":
                with pytest.raises(EngineAway, match="403"):
                    ask()
            else:
                ask()
    (told,) = [message for message in caplog.messages if "denies" in message]
    assert f"GET /{denied}: " in told
    assert "authorization denied by plugin gate: no" in told
