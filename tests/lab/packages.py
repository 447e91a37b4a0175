"""Everything the lab needs on a fresh Debian 12: tools by apt, engines unpacked beside the system.

Engines are not installed. Their packages are downloaded with an apt configuration of its own (own lists,
own state, own suite) and unpacked into the cache, so that several versions live side by side and the
machine's own packages are never upgraded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .paths import CACHE, locked, say

TOOLS = {
    # what must be there : the package that brings it
    "/usr/sbin/iptables": "iptables",
    "/usr/sbin/ip": "iproute2",
    "/usr/sbin/nft": "nftables",
    "/usr/bin/tcpdump": "tcpdump",
    "/usr/sbin/debootstrap": "debootstrap",
    "/usr/bin/docker-registry": "docker-registry",
    "/usr/bin/busybox": "busybox-static",
    "/usr/bin/pigz": "pigz",
    "/usr/bin/xz": "xz-utils",
    "/usr/bin/patchelf": "patchelf",
    "/usr/sbin/conntrack": "conntrack",
    "/usr/sbin/ethtool": "ethtool",
    "/usr/include/linux/netlink.h": "linux-libc-dev",
    "/usr/share/keyrings/debian-archive-trixie-stable.gpg": "debian-archive-keyring",
    "libdevmapper.so.1.02.1": "libdevmapper1.02.1",
    "libsystemd.so.0": "libsystemd0",
    "libseccomp.so.2": "libseccomp2",
    "faketime/libfaketimeMT.so.1": "libfaketime",
}

LIBRARIES = ("libc6", "libsystemd0", "libseccomp2", "libcap2", "libudev1", "libselinux1", "libpcre2-8-0")
PROGRAMS = ("dockerd", "docker", "docker-proxy", "containerd", "containerd-shim-runc-v2", "ctr", "runc")


@dataclass(frozen=True, slots=True)
class Suite:
    """A Debian suite and the packages of it that make one engine."""

    name: str
    packages: tuple[str, ...]


ENGINES = {
    "20.10": Suite("bookworm", ("docker.io", "containerd", "runc", "tini")),
    "26.1": Suite("trixie", ("docker.io", "docker-cli", "containerd", "runc", "tini", *LIBRARIES)),
    "28.5": Suite("forky", ("docker.io", "docker-cli", "containerd", "runc", "tini-static", *LIBRARIES)),
}
ETCD = Suite("trixie", ("etcd-server", "etcd-client"))


def ensure(*wanted: str) -> None:
    """Make sure that each of `wanted` is there: "tools", "etcd", "all" or an engine such as "28.5".

    With no argument: the tools and every engine. Quick when nothing is missing.
    """
    names = wanted or ("all",)
    if "all" in names:
        names = ("tools", "etcd", *ENGINES)
    if "tools" in names:
        _ensure_tools()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_ensure_unpacked, [name for name in names if name != "tools"]))


def _ensure_unpacked(name: str) -> None:
    if name == "etcd":
        etcd_binary()
    else:
        engine_path(name)


def engine_path(engine: str) -> Path:
    """The folder that holds all programs of `engine`; put it first in PATH."""
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not known to the lab; it has {', '.join(ENGINES)}")
    return _unpacked(f"engine-{engine}", ENGINES[engine], _finish_engine) / "bin"


def etcd_binary() -> Path:
    """The path of a real etcd 3.5; needs neither the engines nor any other tool of the lab."""
    return _unpacked("etcd", ETCD, _finish_etcd) / "usr/bin/etcd"


def engine_version(engine: str) -> str:
    """What the engine says of itself, for example "28.5.2"."""
    done = _call([str(engine_path(engine) / "dockerd"), "--version"])
    return done.split("version")[1].split(",")[0].strip().split("+")[0]


# --- tools of the machine -------------------------------------------------------------------------------


def _ensure_tools() -> None:
    missing = _missing_tools()
    if not missing:
        return
    with locked("apt"):
        missing = _missing_tools()
        if not missing:
            return
        say(f"installing {' '.join(missing)}")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _call(["apt-get", "update", "-qq"], env=env)
        had_registry = Path("/usr/bin/docker-registry").exists()
        _call(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "--no-upgrade", *missing], env=env
        )
        if not had_registry:
            # The package starts a registry for the whole machine; the lab runs its own, in a namespace.
            stop = ["systemctl", "disable", "--now", "docker-registry"]
            if shutil.which("systemctl"):
                subprocess.run(stop, capture_output=True, check=False)


def _missing_tools() -> list[str]:
    libraries = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"

    def there(what: str) -> bool:
        return (Path(what) if what.startswith("/") else libraries / what).exists()

    return sorted({package for what, package in TOOLS.items() if not there(what)})


def _call(argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command that must succeed; what it printed is in the error if it does not."""
    done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


# --- packages unpacked beside the system ----------------------------------------------------------------


def _unpacked(name: str, suite: Suite, finish: Callable[[Path, Path], None]) -> Path:
    """The folder with `suite`'s packages unpacked; made aside and renamed, so it is whole or absent."""
    final = CACHE / name
    # Interpreter and library paths are written into the binaries: a cache that was moved must be made again.
    stamp = {"path": str(final), "packages": list(suite.packages), "suite": suite.name, "format": 1}
    if _stamped(final) == stamp:
        return final
    with locked(name):
        if _stamped(final) == stamp:
            return final
        if final.exists():
            shutil.rmtree(final)
        say(f"fetching {name} from Debian {suite.name}")
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=CACHE) as folder:
            root = Path(folder) / "root"
            root.mkdir()
            for deb in _download(suite, Path(folder)):
                _call(["dpkg", "-x", str(deb), str(root)])
            finish(root, final)
            (root / "stamp.json").write_text(json.dumps(stamp))
            root.rename(final)
    return final


def _stamped(folder: Path) -> object:
    try:
        return json.loads((folder / "stamp.json").read_text())
    except (OSError, ValueError):
        return None


def _download(suite: Suite, folder: Path) -> list[Path]:
    config = _isolated_apt(suite.name, folder)
    debs = folder / "debs"
    debs.mkdir()
    env = {**os.environ, "APT_CONFIG": str(config)}
    _call(["apt-get", "update", "-qq"], env=env)
    _call(["apt-get", "download", "-qq", *suite.packages], env=env, cwd=debs)
    return sorted(debs.glob("*.deb"))


def _isolated_apt(suite: str, folder: Path) -> Path:
    """An apt configuration that neither reads nor writes anything of the machine's own apt state."""
    for part in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "etc/sources.list").write_text(f"deb [signed-by={keyring}] {debian_mirror()} {suite} main\n")
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::Etc "{folder}/etc";\n'
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        # A mirror may be a snapshot whose Release file has expired. It is signed all the same.
        'Acquire::Check-Valid-Until "false";\n'
    )
    return config


def debian_mirror() -> str:
    """The mirror that this machine itself uses for Debian's main archive, read from its apt sources."""
    asked = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(CODENAME) $(COMPONENT)",
        "Created-By: Packages",
    ]
    codename = _os_release("VERSION_CODENAME")
    for line in _call(asked).splitlines():
        uri, *rest = line.split()
        if rest[:2] == [codename, "main"]:
            return uri.rstrip("/")
    raise RuntimeError(f"no apt source of this machine serves Debian {codename} main; the lab needs one")


def _os_release(key: str) -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value.strip('"')
    raise RuntimeError(f"/etc/os-release has no {key}")


def _finish_engine(root: Path, final: Path) -> None:
    """Gather the programs in one `bin` and make those that want a newer C library find their own."""
    target = root / "bin-of-engine"
    target.mkdir()
    for program in PROGRAMS:
        found = [p for d in ("usr/sbin", "usr/bin", "sbin", "bin") if (p := root / d / program).is_file()]
        if not found:
            raise RuntimeError(f"the engine's packages have no {program}")
        shutil.move(found[0], target / program)
        _mend(target / program, root, final)
    version = _call([str(target / "dockerd"), "--version"])
    if f"version {final.name.removeprefix('engine-')}" not in version:
        # Debian testing moves on; the lab then tests with what it has now.
        say(f"{final.name} is {version.strip()}: the suite has moved on")
    init = next(iter(sorted(root.glob("usr/*bin/tini-static"))), None)
    if init is not None:
        shutil.move(init, target / "docker-init")
    target.rename(root / "bin")


def _mend(program: Path, root: Path, final: Path) -> None:
    """Point a program that the machine's C library cannot run to the one of its own suite.

    dockerd, docker and containerd of newer suites run as they are; runc wants a newer glibc.
    """
    probe = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    if "GLIBC_" not in probe.stderr:
        return
    loader = next(iter(root.glob("usr/lib/*/ld-linux-*.so.*")))
    libraries = final / loader.parent.relative_to(root)
    _call(
        [
            "patchelf",
            "--set-interpreter",
            str(libraries / loader.name),
            "--set-rpath",
            str(libraries),
            str(program),
        ]
    )


def _finish_etcd(root: Path, final: Path) -> None:
    if not (root / "usr/bin/etcd").is_file():
        raise RuntimeError(f"Debian's etcd-server brought no usr/bin/etcd for {final}")
