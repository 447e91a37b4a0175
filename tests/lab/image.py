"""Builds the plugin from the repository's Dockerfile where no registry of base images can be reached.

The Dockerfile is what anyone would use. Its base image, `debian:trixie-slim`, is made here by debootstrap
from the machine's own Debian mirror, slimmed as the official one, and given the machine's CA certificates and
pip configuration, so that `RUN apt-get` and `RUN pip` reach what the machine reaches.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import packages
from .cleanup import clean, make_folder, remove_lab
from .host import Host
from .paths import CACHE, PREFIX, REPO, locked, say
from .spaces import CommandError, Spaces

BASE = "debian:trixie-slim"
BASE_MADE = f"{PREFIX}-base:3"
"""The same image by the lab's own name; the number counts up when what goes into it changes."""
SUITE = "trixie"
BUILD_ENGINE = "20.10"
"""Debian's 20.10 client has BuildKit built in; the newer ones want a plugin (buildx) for it."""

INPUTS = ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock", "config.json")
INPUT_FOLDERS = ("plugin", "driver", "ipam", "lib")

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LENT_CERTIFICATES = f"/etc/ssl/{PREFIX}.crt"
"""Where the build finds them: a file of its own, which no package of certificates overwrites."""
PIP_CONFIGURATION = Path("etc/pip.conf")

# What the official slim image leaves out, and the settings by which dpkg and apt leave it out later too.
SLIM = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian")
SLIM_FILES = {
    "etc/dpkg/dpkg.cfg.d/docker": "force-unsafe-io\n"
    + "".join(f"path-exclude /{folder}/*\n" for folder in SLIM),
    "etc/apt/apt.conf.d/docker-no-languages": 'Acquire::Languages "none";\n',
    "etc/apt/apt.conf.d/docker-gzip-indexes": 'Acquire::GzipIndexes "true";\n',
    "etc/apt/apt.conf.d/docker-clean": (
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
        'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
    ),
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
}


def build_plugin(repo: Path = REPO) -> Path:
    """The folder with `rootfs/` and `config.json` for `docker plugin create`; made if an input changed."""
    target = CACHE / "plugin" / inputs_digest(repo)
    if target.is_dir():
        return target
    if not (repo / "config.json").is_file():
        raise FileNotFoundError(f"{repo} has no config.json: it is no plugin")
    with locked("plugin"):
        if target.is_dir():
            return target
        (CACHE / "plugin").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new.", dir=CACHE / "plugin") as folder:
            made = Path(folder) / "plugin"
            made.mkdir()
            export_image(repo, made / "rootfs")
            shutil.copy(repo / "config.json", made)
            made.rename(target)
        _forget_old(CACHE / "plugin", keep=3)
    return target


def inputs_digest(repo: Path) -> str:
    """A digest of everything that goes into the image."""
    files = [repo / name for name in INPUTS] + sorted(repo.glob("requirements*.lock"))
    for folder in INPUT_FOLDERS:
        files += sorted(path for path in (repo / folder).rglob("*") if "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(f"{file.relative_to(repo)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def export_image(context: Path, rootfs: Path) -> None:
    """`docker build` of `context`'s Dockerfile, its whole file system unpacked into `rootfs`."""
    packages.ensure("tools", BUILD_ENGINE)
    with build_host() as host:
        _ensure_base(host)
        say(f"docker build {context}")
        _build(host, context)
        container = host.docker("create", f"{PREFIX}-build", "true")
        rootfs.mkdir(parents=True)
        try:
            with host.popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
                subprocess.run(["tar", "-x", "-C", str(rootfs)], stdin=export.stdout, check=True)
            if export.returncode != 0:
                raise RuntimeError(f"docker export of {container} failed")
        finally:
            host.docker("rm", "-f", container)
        _take_back_machine_settings(rootfs)


@contextmanager
def build_host() -> Iterator[Host]:
    """An engine in the machine's own network, with images and layers kept from one run to the next."""
    clean(only_dead=True)
    with locked("build"):
        lab = f"build{os.getpid()}"
        folder, data = make_folder(lab), CACHE / "build"
        data.mkdir(exist_ok=True)
        try:
            spaces = Spaces.create(
                f"{PREFIX}-{lab}-engine",
                hostname="build",
                folder=folder,
                network=False,
                nameserver=None,
                binds=[(str(data), "/var/lib/docker")],
            )
            host = Host("build", BUILD_ENGINE, "127.0.0.1", folder, spaces, "127.0.0.1:5000")
            try:
                # It must not touch the machine's own network: no bridge, no packet filter rules.
                host.start_engine(options=["--bridge=none", "--iptables=false", "--ip-masq=false"])
                yield host
                # An engine killed while it writes may lose the layers that the next run hopes for.
                host.stop_engine()
            finally:
                spaces.close()
        finally:
            remove_lab(lab)


def _build(host: Host, context: Path) -> None:
    argv = ["docker", "build", "--network=host", "--progress=plain", "-t", f"{PREFIX}-build", str(context)]
    done = host.run(argv, env={"DOCKER_BUILDKIT": "1"}, check=False, timeout=1200)
    if done.returncode != 0:
        raise CommandError("build", argv, done.returncode, done.stdout[-4000:], done.stderr[-8000:])


# --- base image -----------------------------------------------------------------------------------------


def _ensure_base(host: Host) -> None:
    """Have `debian:trixie-slim` in the build engine."""
    if host.docker("image", "ls", "-q", BASE_MADE):
        return
    say(f"making the base image {BASE} with debootstrap")
    with tempfile.TemporaryDirectory(prefix="base.", dir=CACHE) as folder:
        root = Path(folder) / "root"
        host.run(
            [
                "debootstrap",
                "--variant=minbase",
                SUITE,
                str(root),
                packages.debian_mirror(),
            ],
            timeout=600,
        )
        _slim(root)
        _lend_machine_settings(root)
        changes = [f"--change=ENV {name}={LENT_CERTIFICATES}" for name in ("PIP_CERT", "SSL_CERT_FILE")]
        changes += [
            '--change=CMD ["bash"]',
            "--change=ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        pack = subprocess.Popen(["tar", "-c", "-C", str(root), "."], stdout=subprocess.PIPE)
        load = host.popen(
            ["docker", "import", *changes, "-", BASE_MADE], stdin=pack.stdout, stdout=subprocess.DEVNULL
        )
        assert pack.stdout is not None
        pack.stdout.close()
        if load.wait() != 0 or pack.wait() != 0:
            raise RuntimeError("docker import of the base image failed")
        host.docker("tag", BASE_MADE, BASE)


def _slim(root: Path) -> None:
    for folder in SLIM:
        for entry in (root / folder).glob("*"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / folder)
        (root / folder / "partial").mkdir(parents=True)
    for name, text in SLIM_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)


def _lend_machine_settings(root: Path) -> None:
    """The machine's CA certificates and pip index: needed to build, no part of what the Dockerfile does."""
    target = root / LENT_CERTIFICATES.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(CERTIFICATES, target)
    lent = configparser.ConfigParser()
    lent["global"] = {"cert": LENT_CERTIFICATES}
    for file in ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf"):
        found = configparser.ConfigParser()
        found.read(Path(file).expanduser())
        for key in ("index-url", "trusted-host", "proxy"):
            if value := found.get("global", key, fallback=None):
                lent["global"][key] = value
    with open(root / PIP_CONFIGURATION, "w") as handle:
        lent.write(handle)


def _take_back_machine_settings(root: Path) -> None:
    """What was lent for the build is no part of the plugin."""
    (root / PIP_CONFIGURATION).unlink(missing_ok=True)
    (root / LENT_CERTIFICATES.lstrip("/")).unlink(missing_ok=True)


def _forget_old(folder: Path, keep: int) -> None:
    """Keep the newest few builds only; each is more than a hundred megabytes."""
    builds = sorted(
        (d for d in folder.iterdir() if not d.name.startswith("new.")), key=lambda d: d.stat().st_mtime
    )
    for old in builds[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
