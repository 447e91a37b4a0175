"""Settings: what is not as it should be is refused by its name."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from plugin import settings
from plugin.settings import SettingsError, load


def problems(**variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load({f"PYOVERLAY_{name}": value for name, value in variables.items()})
    return caught.value.problems


def test_nothing_needs_to_be_set() -> None:
    """And what other programs have in the environment does not matter."""
    found = load({"PATH": "/bin", "GUNICORN_CMD_ARGS": "--workers 9"})
    assert (found.scope, found.store, found.store_port, found.vtep) == ("auto", (), 2389, None)
    assert (found.vxlan_port, found.log_level, found.shortcut) == (None, "info", "auto")
    assert found.state_dir == Path("/var/lib/pyoverlay")
    assert found.swarm_dir == Path("/var/lib/docker/swarm")
    assert found.socket == Path("/run/docker/plugins/pyoverlay.sock")


def test_an_empty_variable_is_none() -> None:
    """A plugin's config.json passes what was not set as an empty string."""
    empty = {f"PYOVERLAY_{field.upper()}": " " for field in settings.Settings.model_fields}
    assert load(empty) == load({})


def test_every_setting_can_be_set() -> None:
    found = load(
        {
            "PYOVERLAY_SCOPE": "Global",
            "PYOVERLAY_STORE": "https://10.0.0.1:2379, http://[fd00::1]:2379/",
            "PYOVERLAY_STORE_PORT": "2390",
            "PYOVERLAY_VTEP": "fd00::7",
            "PYOVERLAY_VXLAN_PORT": "8472",
            "PYOVERLAY_SHORTCUT": "Off",
            "PYOVERLAY_LOG_LEVEL": "DEBUG",
            "PYOVERLAY_STATE_DIR": "/a",
            "PYOVERLAY_RUN_DIR": "/b",
            "PYOVERLAY_SWARM_DIR": "/c",
            "PYOVERLAY_SOCKET": "/d.sock",
            "PYOVERLAY_DOCKER_SOCKET": "/e.sock",
        }
    )
    assert found.scope == "global"
    assert found.store == ("https://10.0.0.1:2379", "http://[fd00::1]:2379")
    assert (found.store_port, found.vxlan_port, found.log_level) == (2390, 8472, "debug")
    assert found.shortcut == "off"
    assert found.vtep == ip_address("fd00::7")
    assert [str(path) for path in (found.state_dir, found.run_dir, found.swarm_dir)] == ["/a", "/b", "/c"]
    assert (str(found.socket), str(found.docker_socket)) == ("/d.sock", "/e.sock")


def test_store_auto_is_the_default() -> None:
    assert load({"PYOVERLAY_STORE": "auto"}).store == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCOPE", "swarm"),
        ("STORE", "etcd"),
        ("STORE", "https://a:2379,"),
        ("STORE", "https://"),
        ("STORE", "https://a:99999"),
        ("STORE", "https://a:0"),
        ("STORE", "https://user:secret@a"),
        ("STORE", "https://a/path"),
        ("STORE", "ftp://a"),
        ("STORE", "https://[::1"),
        ("STORE_PORT", "0"),
        ("STORE_PORT", "65536"),
        ("VTEP", "eth0"),
        ("VTEP", "10.0.0.1/24"),
        ("VTEP", "0.0.0.0"),
        ("VTEP", "127.0.0.1"),
        ("VTEP", "239.1.1.1"),
        ("VTEP", "fe80::1%eth0"),
        ("VXLAN_PORT", "4789/udp"),
        ("VXLAN_PORT", "-1"),
        ("VXLAN_PORT", "1e3"),
        ("LOG_LEVEL", "verbose"),
        ("STATE_DIR", "var/lib"),
        ("RUN_DIR", "~"),
        ("SWARM_DIR", "."),
        ("SOCKET", "x.sock"),
        ("DOCKER_SOCKET", "unix:///run/docker.sock"),
        ("SOCKET", "/" + "x" * 107),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """Variable, value and what it should be, in one sentence."""
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"PYOVERLAY_{name}: {value!r} is not valid: give ")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("VXLANPORT", "did you mean PYOVERLAY_VXLAN_PORT?"),
        ("vtep", "did you mean PYOVERLAY_VTEP?"),
        ("LOGLEVEL", "did you mean PYOVERLAY_LOG_LEVEL?"),
        ("ENCRYPTION", "the settings are DOCKER_SOCKET, LOG_LEVEL, "),
        ("", "the settings are DOCKER_SOCKET, LOG_LEVEL, "),
    ],
)
def test_an_unknown_name_is_refused(name: str, remedy: str) -> None:
    """A misspelt setting that silently does nothing is found out too late."""
    (problem,) = problems(**{name: ""})
    assert problem.startswith(f"PYOVERLAY_{name}: there is no such setting: {remedy}")


def test_all_problems_are_told_at_once() -> None:
    assert len(problems(VTEP="x", SCOPE="y", FOO="z", STORE_PORT="many")) == 4


def test_the_hosts_run_is_found_in_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is chosen here: an upgraded plugin keeps its first installation's environment."""
    monkeypatch.setattr(settings, "_PLUGIN_RUN_DIR", tmp_path / "run")
    assert load({}).run_dir == Path("/run")
    (tmp_path / "run").mkdir()
    assert load({}).run_dir == tmp_path / "run"


def test_the_plugin_can_only_see_sockets_below_run() -> None:
    """And an ordinary process sees all of them."""
    (problem,) = problems(RUN_DIR="/host/run", DOCKER_SOCKET="/srv/docker.sock")
    assert problem.startswith(
        "PYOVERLAY_DOCKER_SOCKET: '/srv/docker.sock' is not valid: give a path below /run"
    )
    for path in ("/run/other/docker.sock", "/var/run/other/docker.sock"):
        found = load({"PYOVERLAY_RUN_DIR": "/host/run", "PYOVERLAY_DOCKER_SOCKET": path})
        assert str(found.host_path(path)) == "/host/run/other/docker.sock"
    assert load({"PYOVERLAY_DOCKER_SOCKET": "/srv/docker.sock"}).docker_socket == Path("/srv/docker.sock")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).scope = "local"  # type: ignore[misc]


def test_paths_of_the_host_are_seen_below_its_run_folder() -> None:
    found = load({"PYOVERLAY_RUN_DIR": "/host/run"})
    for path in ("/run/docker/netns/1a2b", "/var/run/docker/netns/1a2b"):
        assert str(found.host_path(path)) == "/host/run/docker/netns/1a2b"
    assert str(found.host_path("/data/docker/netns/1a2b")) == "/data/docker/netns/1a2b"
