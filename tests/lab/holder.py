"""First process of a lab host: makes the host's namespaces, stays as PID 1 in them, and is their life.

Run as a plain file (`python -I -S holder.py SPEC`), so it imports the standard library only and starts
quickly. When it ends, the kernel kills every process of the host, and with them go mounts, links and
namespaces. It ends when its standard input ends: the process that made the lab holds the other end of that
pipe, so however that process dies, the kernel closes the pipe and the host is gone. A detached host has no
such pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 4096, 16384, 1 << 18, 1 << 20
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _checked(done, f"mount {kind} {source} on {target}")


def cgroup_mounts() -> list[tuple[str, str, str]]:
    """(mount point, file system, options) of every cgroup hierarchy of this machine, v1 and v2."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            ours = [o for o in options.split(",") if o not in ("rw", "ro", "relatime") and "=/" not in o]
            found.append((left.split()[4], kind, ",".join(ours)))
    return found


def own_cgroup(kind: str, options: str) -> str:
    """Where in the hierarchy this process is now: the host's group is made below, so limits keep holding."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if kind == "cgroup2":
            # A v2 group with processes may not hand controllers down: there the host goes below the root.
            return "/"
        if controllers and set(controllers.split(",")) <= set(options.split(",")):
            return path
    return "/"


def enter_cgroups(name: str) -> None:
    """Make a control group for the host in every hierarchy and move into it.

    Its engine then sees it as the root (cgroup namespace), and what is left over can be told by its name.
    """
    for point, kind, options in cgroup_mounts():
        parent = Path(point + own_cgroup(kind, options))
        group = parent / name
        group.mkdir(exist_ok=True)
        for knob in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (group / knob).exists():
                # A new v1 cpuset is empty and takes no process until it has been given something.
                (group / knob).write_text((parent / knob).read_text())
        (group / "cgroup.procs").write_text("0")


def leave_root_of_group(name: str) -> None:
    """A v2 group hands controllers down only while no process is in the group itself."""
    for point, kind, _ in cgroup_mounts():
        if kind == "cgroup2":
            leaf = Path(point) / name / "init"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")


def mount_cgroups(mounts: list[tuple[str, str, str]]) -> None:
    """Mount the hierarchies again, with the host's own group as their root."""
    if all(kind == "cgroup2" for _, kind, _ in mounts):
        _mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        root = Path("/sys/fs/cgroup")
        wanted = (root / "cgroup.controllers").read_text().split()
        (root / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in wanted))
        return
    _mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for point, kind, options in mounts:
        os.makedirs(point, exist_ok=True)
        _mount(kind, point, kind, MS_NOSUID | MS_NODEV | MS_NOEXEC, options if kind == "cgroup" else "")


def build_root(spec: dict[str, Any], cgroups: list[tuple[str, str, str]]) -> None:
    """Give the host its own /proc, /sys, /run, /etc and /var/lib; the rest is the machine's."""
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    # Gone, not covered: an engine takes the first cgroup mounts that it finds, and those were the machine's.
    for old in ("/sys", "/proc"):
        _checked(libc.umount2(old.encode(), MNT_DETACH), f"unmount {old}")
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount_cgroups(cgroups)
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for folder in ("docker", "containerd", "netns", "lock"):
        os.mkdir(f"/run/{folder}")
    for lower, upper, work in spec["overlays"]:
        _mount("overlay", lower, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    for source, target in spec["binds"]:
        os.makedirs(target, exist_ok=True)
        _mount(source, target, "", MS_BIND)
    # As systemd leaves it on a real host: whatever a plugin mounts "rshared" must lie on a shared mount.
    _mount("", "/", "", MS_REC | MS_SHARED)


def name_host(hostname: str, nameserver: str | None) -> None:
    """Host name and name server, in the host's own /etc."""
    socket.sethostname(hostname)
    Path("/etc/hostname").write_text(f"{hostname}\n")
    with open("/etc/hosts", "a") as hosts:
        hosts.write(f"127.0.1.1 {hostname}\n")
    if nameserver is not None:
        resolv = Path("/etc/resolv.conf")
        resolv.unlink(missing_ok=True)
        resolv.write_text(f"nameserver {nameserver}\n")


def first_process(spec: dict[str, Any], cgroups: list[tuple[str, str, str]]) -> None:
    """PID 1: prepare, report, then only reap the dead until the lab's maker is gone."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    build_root(spec, cgroups)
    name_host(spec["hostname"], spec["nameserver"])
    if spec["network"]:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.write(1, b"ready\n")
    os.dup2(2, 1)
    while spec["detached"] or os.read(0, 64):
        if spec["detached"]:
            signal.pause()


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    spec = json.loads(sys.argv[1])
    enter_cgroups(spec["name"])
    cgroups = cgroup_mounts()
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWPID
    _checked(libc.unshare(spaces | (CLONE_NEWNET if spec["network"] else 0)), "unshare")
    leave_root_of_group(spec["name"])
    child = os.fork()
    if child == 0:
        try:
            first_process(spec, cgroups)
        except BaseException as error:
            os.write(1, f"error {error!r}\n".encode())
        os._exit(0)
    os.write(1, f"pid {child}\n".encode())
    # Only PID 1 may hold the ends of the pipes, or nobody would notice that it is gone.
    os.dup2(2, 0)
    os.dup2(2, 1)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
