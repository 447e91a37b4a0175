"""The settings: read once from the environment, checked, and never looked up again.

Every setting is a variable `PYOVERLAY_<NAME>`; an empty one counts as absent, since a managed
plugin's `config.json` can only pass what it declares, empty strings included. The defaults are here
and not there: an upgraded plugin keeps the environment of its first installation
(moby `daemon/pkg/plugin/manager_linux.go`: upgradePlugin).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from driver.swarm.docker_api import DEFAULT_SOCKET
from driver.wish.values import Address, is_of_a_host

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "PYOVERLAY_"
MAX_SOCKET_PATH = 107
"""Bytes; unix(7): sun_path holds 108 with its closing zero."""
_PLUGIN_RUN_DIR = Path("/host/run")
"""Where the managed plugin's `config.json` mounts the host's /run."""


class SettingsError(Exception):
    """Some settings are wrong; *problems* has one sentence for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _vtep(text: str) -> Address:
    address = ip_address(text)
    if not is_of_a_host(address) or "%" in text:
        raise ValueError(text)
    return address


def _urls(text: str) -> tuple[str, ...]:
    if text.lower() == "auto":
        return ()
    return tuple(_url(part.strip()) for part in text.split(","))


def _url(text: str) -> str:
    parts = urlsplit(text)
    # urlsplit finds a wrong port only when asked for it.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(text)
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(text)
    return text.rstrip("/")


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(path)
    return path


def _socket(path: Path) -> Path:
    if len(bytes(path)) > MAX_SOCKET_PATH:
        raise ValueError(path)
    return path


def _default_run_dir() -> Path:
    return _PLUGIN_RUN_DIR if _PLUGIN_RUN_DIR.is_dir() else Path("/run")


_Word = BeforeValidator(lambda text: text.lower())
_Port = Annotated[int, Field(ge=1, le=65535)]
_Folder = Annotated[Path, AfterValidator(_absolute)]
_SocketPath = Annotated[Path, AfterValidator(_absolute), AfterValidator(_socket)]


class Settings(BaseModel):
    """What the operator decided. A field's description ends the sentence that refuses a wrong value."""

    model_config = ConfigDict(frozen=True)

    scope: Annotated[Literal["auto", "local", "global"], _Word] = Field(
        "auto", description="give auto, local or global"
    )
    """How far networks reach; auto looks whether the engine is in a Swarm, where only managed plugins
    may serve (moby cnmallocator/provider.go: validatePluginDriver)."""
    store: Annotated[tuple[str, ...], BeforeValidator(_urls)] = Field(
        (), description="give auto, or etcd's URLs such as https://10.0.0.1:2379, separated by commas"
    )
    """The URLs of the control plane's store; empty for auto: the Swarm's own, or none."""
    store_port: _Port = Field(2389, description="give a TCP port from 1 to 65535")
    """The TCP port of the store that a Swarm's leader runs."""
    vtep: Annotated[Address | None, BeforeValidator(_vtep)] = Field(
        None, description="give an address at which other hosts reach this one, such as 10.0.0.1"
    )
    """The address that other hosts send to; None: the one that the engine announces. It need not be on a
    device of this host."""
    vxlan_port: _Port | None = Field(None, description="give a UDP port from 1 to 65535")
    """The UDP port of new networks; None: the Swarm's, or IANA's."""
    shortcut: Annotated[Literal["auto", "off"], _Word] = Field("auto", description="give auto or off")
    """Whether frames from other hosts go past the bridge where the kernel can (ADR 12)."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _Word] = Field(
        "info", description="give debug, info, warning or error"
    )
    state_dir: _Folder = Field(Path("/var/lib/pyoverlay"), description="give an absolute path")
    """Where the state is kept that must survive a restart of the host."""
    run_dir: _Folder = Field(default_factory=_default_run_dir, description="give an absolute path")
    """The host's /run, as this process sees it."""
    swarm_dir: _Folder = Field(Path("/var/lib/docker/swarm"), description="give an absolute path")
    """Where the engine keeps the Swarm's state and certificates."""
    docker_socket: _SocketPath = Field(
        DEFAULT_SOCKET, description=f"give an absolute path of at most {MAX_SOCKET_PATH} bytes"
    )
    """The engine's socket, as the host sees it."""
    socket: _SocketPath = Field(
        Path("/run/docker/plugins/pyoverlay.sock"),
        description=f"give an absolute path of at most {MAX_SOCKET_PATH} bytes",
    )
    """The Unix socket that the engine connects to."""

    @property
    def managed(self) -> bool:
        """Whether this is the managed plugin: only its image has the host's /run in that place."""
        return self.run_dir == _PLUGIN_RUN_DIR

    @property
    def in_swarm(self) -> bool:
        """Whether the host is in a Swarm now, unless the user decided.

        The engine starts its plugins before its API is up, so the Swarm's folder is consulted:
        docker-state.json is there while the node is, or wants to be, in a Swarm (moby daemon/cluster).
        """
        if self.scope != "auto":
            return self.scope == "global"
        return self.managed and (self.swarm_dir / "docker-state.json").exists()

    def host_path(self, path: str) -> Path:
        """Return where this process sees a path of the host's that is below /run."""
        below = path.removeprefix("/var")
        return self.run_dir / below.removeprefix("/run/") if below.startswith("/run/") else Path(path)

    @property
    def problem(self) -> str:
        """What is wrong with the settings together; empty for nothing."""
        if self.managed and self.host_path(str(self.docker_socket)) == self.docker_socket:
            return (
                f"{PREFIX}DOCKER_SOCKET: '{self.docker_socket}' is not valid: give a path below /run, "
                "which is all that the plugin sees of the host"
            )
        return ""


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from *environ*.

    Raises SettingsError that lists everything wrong, unknown `PYOVERLAY_*` names included: a
    misspelt setting that silently does nothing is worse than none.
    """
    given = {name[len(PREFIX) :]: text for name, text in environ.items() if name.startswith(PREFIX)}
    known = {field.upper(): field for field in Settings.model_fields}
    problems = [_unknown(name, known) for name in given if name not in known]
    found = {known[name]: text.strip() for name, text in given.items() if name in known and text.strip()}
    try:
        settings = Settings.model_validate(found)
        problems += [settings.problem] if settings.problem else []
    except ValidationError as error:
        problems += [_wrong(detail, found) for detail in error.errors(include_url=False)]
    if problems:
        raise SettingsError(tuple(problems))
    return settings


def _unknown(name: str, known: Mapping[str, str]) -> str:
    close = get_close_matches(name.upper(), known, n=1)
    advice = f"did you mean {PREFIX}{close[0]}?" if close else f"the settings are {', '.join(sorted(known))}"
    return f"{PREFIX}{name}: there is no such setting: {advice}"


def _wrong(detail: ErrorDetails, found: Mapping[str, str]) -> str:
    field = str(detail["loc"][0])
    advice = Settings.model_fields[field].description
    return f"{PREFIX}{field.upper()}: {found[field]!r} is not valid: {advice}"
