"""Namespaces: where they are pinned, who sees them, what a read-only /proc/sys does to them (nothing)."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from driver.kernel import netns
from driver.kernel.host import NetlinkKernel
from driver.kernel.kinds import Namespace
from driver.kernel.ops import Delete, Set
from tests.kernel.hosts import Host, Space, in_mount_namespace
from tests.kernel.samples import NS, network
from tests.worlds import converge

pytestmark = pytest.mark.kernel


def test_the_callers_own_namespace_never_changes(host: Host) -> None:
    before = os.readlink("/proc/thread-self/ns/net"), os.readlink("/proc/thread-self/ns/mnt")
    host.kernel.apply([Set(Namespace(NS))])
    host.kernel.read_place(NS)
    assert (os.readlink("/proc/thread-self/ns/net"), os.readlink("/proc/thread-self/ns/mnt")) == before


def test_a_half_made_pin_is_no_namespace_and_is_finished(host: Host) -> None:
    host.directory.mkdir()
    (host.directory / NS).touch()
    assert list(host.kernel.namespaces()) == [NS], "listed, for otherwise nobody would remove it"
    assert host.kernel.read_place(NS) == {}
    assert host.kernel.read_place(NS) == {}
    want = network()
    assert converge(host.kernel, want) == want


def test_a_half_made_pin_is_removed(host: Host) -> None:
    host.directory.mkdir()
    (host.directory / NS).touch()
    assert host.kernel.apply([Delete(Namespace(NS))]) == {}
    assert not (host.directory / NS).exists()


def test_where_no_thread_can_be_had_the_kernel_refuses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where files run out: it is tried again, and no other network suffers."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        refused = host.kernel.apply([Set(Namespace(NS))])
    assert ["no thread" in str(reason) for reason in refused.values()] == [True]
    assert host.kernel.apply([Set(Namespace(NS))]) == {}


def test_other_names_are_not_ours(host: Host) -> None:
    host.directory.mkdir()
    namespace = netns.create()
    netns.pin(namespace, host.directory / "blue")
    os.close(namespace)
    assert list(host.kernel.namespaces()) == []


def test_pins_that_cover_each_other_all_go(host: Host) -> None:
    for _ in range(2):
        namespace = netns.create()
        netns.pin(namespace, host.directory / NS)
        os.close(namespace)
    host.kernel.apply([Delete(Namespace(NS))])
    assert list(host.directory.iterdir()) == []


def test_a_read_only_proc_sys_is_no_obstacle(tmp_path: Path) -> None:
    """As in a managed plugin, which has the capabilities but not the mount."""

    def work() -> str:
        with pytest.raises(OSError, match="Read-only"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        space = Space(netns.create())
        try:
            return space.run("cat /proc/sys/net/ipv6/conf/all/forwarding; ip -br link show lo")
        finally:
            space.close()

    read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
    shown = in_mount_namespace(work, "mount --make-rprivate /", read_only)
    assert shown.startswith("1\n")
    assert "UP" in shown


def test_nothing_of_the_private_procfs_is_left(host: Host) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    os.close(netns.create())
    assert Path("/proc/self/mountinfo").read_text() == before


def test_pins_reach_the_host_and_end_there_too(tmp_path: Path) -> None:
    """The plugin's mount namespace shares a folder with the host's (rshared)."""
    shared = tmp_path / "run"
    shared.mkdir()
    subprocess.run(["mount", "--bind", shared, shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)
    pin = shared / "netns" / NS
    try:

        def plugin(*ops: Set | Delete) -> None:
            kernel = NetlinkKernel(shared / "netns")
            assert kernel.apply(ops) == {}
            kernel.close()

        in_mount_namespace(lambda: plugin(Set(Namespace(NS))))
        assert netns.is_pin(pin), "the host does not see it"
        in_mount_namespace(lambda: plugin(Set(Namespace(NS)), Delete(Namespace(NS))))
        assert not pin.exists()
    finally:
        subprocess.run(["umount", shared], check=True)


def test_ip_netns_works_with_our_namespaces() -> None:
    def work() -> str:
        kernel = NetlinkKernel()
        assert kernel.apply([Set(Namespace(NS))]) == {}
        try:
            commands = (
                f"ip netns list; ip -n {NS} -br link; ip netns exec {NS} cat /proc/sys/net/ipv4/ip_forward"
            )
            shown = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, check=True).stdout
            kernel.read_place(NS)
            subprocess.run(["ip", "netns", "delete", NS], check=True)
            key = Namespace(NS).key
            assert kernel.read_place(NS) == {key: Namespace(NS, pinned=False)}
            assert kernel.apply([Set(Namespace(NS))]) == {}
            assert netns.is_pin(Path("/run/netns") / NS)
        finally:
            kernel.apply([Delete(Namespace(NS))])
            kernel.close()
        return shown

    private = "mount --make-rprivate / && mkdir -p /run/netns && mount -t tmpfs none /run/netns"
    name, link, forwards = in_mount_namespace(work, private).splitlines()
    assert name.split()[0] == NS
    assert link.split()[0] == "lo"
    assert forwards == "1"


def test_what_fails_inside_is_told_outside(host: Host) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        host.inside(fail)
    with pytest.raises(OSError, match="setns"):
        netns.inside(os.open("/dev/null", os.O_RDONLY), fail)


def test_a_visit_ends_where_it_began(host: Host) -> None:
    def there() -> tuple[int, int] | None:
        return netns.identity(Path("/proc/thread-self/ns/net"))

    def fail() -> None:
        raise ZeroDivisionError

    home, away = there(), host.inside(there)
    assert home != away
    assert netns.visit(host.descriptor, there) == away
    assert there() == home
    with pytest.raises(ZeroDivisionError):
        netns.visit(host.descriptor, fail)
    assert there() == home
    with pytest.raises(OSError, match="setns"):
        netns.visit(os.open("/dev/null", os.O_RDONLY), there)
    assert there() == home
