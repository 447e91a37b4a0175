"""A hostile or broken host: a sentence that names what and the way out, others untouched, and it heals."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.wish.disk import WishFile
from driver.wish.errors import DiskError
from driver.wish.model import Host as HostRecord
from driver.wish.state import State
from driver.wish.values import NodeId
from driver.wish.wish import Wish
from ipam.disk import LeaseFile
from tests.faults.program import VTEP, Program, RealGround
from tests.faults.test_races import NETWORKS, body, call, end_all, endpoint

pytestmark = pytest.mark.kernel


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    WishFile(folder / "state.json").save(State(HostRecord(NodeId("node"), VTEP)))
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[RealGround]:
    made = RealGround(tmp_path)
    yield made
    made.close()


@pytest.fixture
def program(ground: RealGround, disk: Path) -> Iterator[Program]:
    """A program with one network in use, which must stay as it is whatever happens."""
    made = Program(disk, ground, disk=WishFile(disk / "state.json"))
    for name in ("CreateNetwork", "CreateEndpoint", "Join"):
        call(made, name, 0)
    made.quiet()
    yield made
    made.stop()


def fails(program: Program, name: str, net: int, *, says: str) -> None:
    """The call is refused with a sentence, and the network in use is untouched."""
    status, text = program.call(f"NetworkDriver.{name}", body(name, net, 0))
    assert status >= 400
    assert "internal error" not in text
    assert says in text
    have, want = program.kernel_and_wish(NETWORKS[:1])
    assert have == want != {}


def heals(program: Program, net: int = 1) -> None:
    for name in ("CreateNetwork", "CreateEndpoint", "Join"):
        call(program, name, net)
    program.quiet()
    have, want = program.kernel_and_wish(NETWORKS)
    assert have == want
    end_all(program)


def _fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler.unlink


def _read_only(disk: Path) -> Callable[[], None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return lambda: print(subprocess.run(["mount", "-o", "remount,rw", disk], check=True))


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_fill, "No space left"), (_read_only, "Read-only")], ids=["full", "read-only"]
)
def test_disk(program: Program, disk: Path, spoil: Callable[[Path], Callable[[], None]], reason: str) -> None:
    repair = spoil(disk)
    try:
        fails(program, "CreateNetwork", 1, says=reason)
        fails(program, "CreateNetwork", 1, says=str(disk / "state.json"))
        status, text = program.call(
            "IpamDriver.RequestPool",
            {
                "AddressSpace": "pyoverlay-local",
                "Pool": "10.9.0.0/24",
                "SubPool": "",
                "Options": {},
                "V6": False,
            },
        )
        assert status == 500
        assert "ipam.json" in text
        assert not list(disk.glob("*.new"))
        assert Wish(WishFile(disk / "state.json")).state.networks, "a start must not need to write"
        assert LeaseFile(disk / "ipam.json").load() is None
        for name in ("Leave", "DeleteEndpoint", "DeleteNetwork"):  # the engine says these once
            call(program, name, 0)
        program.quiet()
        assert program.kernel_and_wish(NETWORKS[:1]) == ({}, {})
        assert not list(disk.glob("*.new"))
    finally:
        repair()
    heals(program)


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_truncated_state(disk: Path, size: int) -> None:
    path = disk / "state.json"
    os.truncate(path, min(size, path.stat().st_size - 2))
    before = path.read_bytes()
    with pytest.raises(DiskError, match=r"state\.json is damaged.*move it away"):
        Wish(WishFile(path))
    assert path.read_bytes() == before
    path.unlink()
    Wish(WishFile(path))


def test_out_of_file_descriptors(program: Program) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    call(program, "CreateNetwork", 1)
    call(program, "CreateEndpoint", 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    hoard: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.dup(0))
        answers = [
            program.call(f"NetworkDriver.{name}", body(name, net, 0))
            for name, net in (("Join", 1), ("CreateNetwork", 2))
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in hoard:
            os.close(descriptor)
    for status, text in answers:
        assert status >= 400
        assert "Too many open files" in text
        assert "internal error" not in text
    have, want = program.kernel_and_wish(NETWORKS[:1])
    assert have == want != {}
    heals(program)


def test_vni_of_a_strangers_device(program: Program, ground: RealGround) -> None:
    ground.host.run("ip link add theirs type vxlan id 70002 dstport 4789 local 192.0.2.1")
    call(program, "CreateNetwork", 1)
    call(program, "CreateEndpoint", 1)
    fails(program, "Join", 1, says="VNI 70002 on UDP port 4789 is already used on this host by the VXLAN")
    fails(program, "Join", 1, says="choose another VNI")
    ground.host.run("ip link del theirs")
    heals(program)


def test_name_of_a_strangers_device_on_the_host(program: Program, ground: RealGround) -> None:
    name = f"pyo{endpoint(1, 0)[:12]}"
    ground.host.run(f"ip link add {name} type bridge")
    call(program, "CreateNetwork", 1)
    call(program, "CreateEndpoint", 1)
    fails(program, "Join", 1, says=f"a bridge device named {name} that is not pyoverlay's; rename or remove")
    assert name in ground.leftovers()
    ground.host.run(f"ip link del {name}")
    heals(program)


def test_name_of_a_strangers_device_in_the_namespace(program: Program, ground: RealGround) -> None:
    space = ground.host.overlay(f"pyoverlay-{NETWORKS[0][:12]}")
    port = f"port{endpoint(0, 1)[:11]}"
    try:
        space.run(f"ip link add {port} type bridge")
        call(program, "CreateEndpoint", 0, 1)
        status, text = program.call("NetworkDriver.Join", body("Join", 0, 1))
        assert status == 500
        assert f"a bridge device named {port} that is not pyoverlay's; rename or remove" in text
        space.run(f"ip link del {port}")
    finally:
        space.close()
    heals(program)
