"""The lab itself: real engines come up, form one swarm, and leave no trace, however the lab ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab import CommandError, Lab, clean, wait_for
from tests.lab.cleanup import control_groups, holders
from tests.lab.paths import LABS, REPO
from tests.lab.spaces import Process, started_at

pytestmark = pytest.mark.lab


def processes_of(lab: str) -> set[Process]:
    """Every process in the control groups of a lab's hosts, holders and containers included."""
    found = set()
    for group in control_groups(lab):
        for folder, _, _ in os.walk(group):
            for line in (Path(folder) / "cgroup.procs").read_text().split():
                if (start := started_at(int(line))) is not None:
                    found.add(Process(int(line), start))
    return found


def mounted_somewhere(text: str) -> list[str]:
    """Mounts, in whichever mount namespace of this machine, that mention `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                found += [line for line in (entry / "mountinfo").read_text().splitlines() if text in line]
    return found


def traces(lab: str) -> list[str]:
    """What is left of one lab: files, control groups, holders, mounts."""
    left = [str(group) for group in control_groups(lab)]
    left += [f"holder {process.pid}" for name, process, _ in holders() if name == lab]
    left += mounted_somewhere(str(LABS / lab))
    return left + ([str(LABS / lab)] if (LABS / lab).exists() else [])


def machine_files() -> list[str]:
    """What an engine that is not locked in would write on the machine."""
    watched = ("/run/docker", "/run/docker.sock", "/var/lib/docker", "/etc/docker", "/var/lib/containerd")
    return [path for path in watched if Path(path).exists()] + [Path("/etc/hostname").read_text()]


def test_engines_of_two_ages_form_a_swarm_and_leave_nothing() -> None:
    machine_before = machine_files()
    with Lab(engines=["28.5", "20.10"]) as lab:
        h1, h2 = lab.hosts
        lab.swarm()
        versions = h1.docker("node", "ls", "--format", "{{.EngineVersion}}").split()
        assert sorted(version[:5] for version in versions) == ["20.10", "28.5."]

        h1.docker("network", "create", "-d", "overlay", "--attachable", "net")
        for host in lab.hosts:
            host.docker(
                "run", "-d", "--network", "net", "--name", f"on-{host.name}", "busybox", "sleep", "1000"
            )
        with lab.capture(h1, "udp port 4789") as capture:
            h2.docker("exec", "on-h2", "ping", "-c", "3", "-W", "2", "on-h1")
        frames = [packet for packet in capture.packets() if packet.vni is not None]
        assert {packet.source for packet in frames} == {h1.address, h2.address}
        assert all(not packet.fragment and packet.vxlan_header for packet in frames)
        h2.docker("exec", "on-h2", "ping", "-c", "1", "-W", "2", lab.outside)
        processes = processes_of(lab.id)
        assert len(processes) > 10, "holders, engines, containerds, shims, containers"
        assert mounted_somewhere(str(LABS / lab.id))
    assert traces(lab.id) == []
    assert not [process for process in processes if process.alive]
    assert machine_files() == machine_before


def test_killed_maker_leaves_no_process_and_the_next_start_removes_the_rest() -> None:
    script = (
        "import sys, time\n"
        "from tests.lab import Lab\n"
        "lab = Lab(engines=['20.10'])\n"
        "lab.hosts[0].docker('run', '-d', '--name', 'c1', 'busybox', 'sleep', '1000')\n"
        "print(lab.id, flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lab = child.stdout.readline().strip()
    in_lab = processes_of(lab)
    assert len(in_lab) > 4, "holder, dockerd, containerd, shim, container"

    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert wait_for(lambda: not any(process.alive for process in in_lab), 10), processes_of(lab)
    assert traces(lab), "files and control groups are what a kill cannot remove"
    assert lab in clean(only_dead=True)
    assert traces(lab) == []


def test_processes_engine_and_cable() -> None:
    with Lab(engines=["26.1"], mtu=1400, ipv6=True) as lab:
        (host,) = lab.hosts
        assert host.docker("run", "--rm", "busybox", "echo", "hello") == "hello"
        assert host.run(["hostname"]).stdout == "h1\n"
        assert "mtu 1400" in host.run(["ip", "link", "show", host.interface]).stdout

        # A Popen is the process in the host itself.
        sleeper = host.popen(["sleep", "1000"])
        sleeper.terminate()
        assert sleeper.wait(5) == -signal.SIGTERM
        with pytest.raises(CommandError, match="no such thing"):
            host.docker("run", "--rm", "busybox", "sh", "-c", "echo no such thing >&2; exit 3")

        assert host.run(["busybox", "ping", "-c1", "-W1", lab.gateway], check=False).returncode == 0
        assert host.run(["busybox", "ping", "-6", "-c1", "-W1", lab.outside6], check=False).returncode == 0
        lab.cut(host)
        assert host.run(["busybox", "ping", "-c1", "-W1", lab.gateway], check=False).returncode != 0
        lab.heal(host)
        assert wait_for(
            lambda: host.run(["busybox", "ping", "-c1", "-W1", lab.gateway], check=False).returncode == 0, 10
        )

        # Containers outlive a killed engine, as on any machine.
        host.docker("run", "-d", "--name", "c1", "--restart", "always", "busybox", "sleep", "1000")
        host.stop_engine(kill=True)
        assert not host.engine_running
        host.start_engine()
        assert host.docker("ps", "--format", "{{.Names}}") == "c1"

        # A mount under /run/netns is the host's own, and every process in the host sees it.
        host.run(["ip", "netns", "add", "blue"])
        assert host.run(["ip", "netns"]).stdout.strip() == "blue"
        assert not Path("/run/netns/blue").exists()


def test_detached_lab_outlives_its_maker_and_can_be_taken_down() -> None:
    command = [sys.executable, "-m", "tests.lab"]
    if (LABS.parent / "detached.json").exists():
        pytest.skip("somebody's detached lab is up")
    try:
        subprocess.run(
            [*command, "up", "--engines", "28.5", "--swarm", "0", "--detach"], cwd=REPO, check=True
        )
        lab = Lab.attach()
        name = lab.host("h1").docker("info", "--format", "{{.Name}}")
        assert name == "h1"
        assert clean(only_dead=True) == []
        shown = subprocess.run(
            [*command, "exec", "h1", "docker", "ps"], cwd=REPO, check=True, capture_output=True
        )
        assert b"CONTAINER ID" in shown.stdout
    finally:
        began = time.monotonic()
        subprocess.run([*command, "down"], cwd=REPO, check=True)
    assert time.monotonic() - began < 10
    assert traces(lab.id) == []
    with pytest.raises(RuntimeError, match="no detached lab"):
        Lab.attach()
