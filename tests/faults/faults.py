"""Faults by name: how each is done to a lab, and undone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.e2e.conftest import put, reconfigure
from tests.e2e.containers import DRIVER, unique
from tests.faults.facts import PREFIX, processes, read, state, state_folder, store_host
from tests.faults.scene import Scene, arbiter_and_worker, leader_of, plugin_answers, signal, until
from tests.lab import Host, wait_for

Step = Callable[[Scene], None]


class Traffic(Enum):
    """What may become of the traffic of the hosts that a fault is done to; all others lose nothing."""

    WHOLE = "not one packet is lost"
    CUT = "it stops meanwhile, and goes on after"
    BLINK = "some packets may be lost until it is mended"
    DEAD = "the containers end, and others come"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong."""

    name: str
    do: Step
    undo: Step = lambda scene: None
    hosts: Callable[[Scene], list[Host]] = lambda scene: [scene.worker]
    """Whom it hurts."""
    traffic: Traffic = Traffic.WHOLE
    lasts: float = 1.0
    bound: float = 10.0
    """Seconds from its end until everything is right again, with a second or two for a busy machine."""
    churn: bool = True
    """Containers start and stop on the other hosts meanwhile."""
    smoke: bool = False
    """Belongs to the part that runs in `make test`."""
    slow: bool = False
    """Not for the soak."""


# --- the plugin ---------------------------------------------------------------------------------------------


def _kill_arbiter(scene: Scene) -> None:
    arbiter, _ = arbiter_and_worker(scene.worker)
    scene.notes["arbiter"] = str(arbiter)
    signal(scene.worker, arbiter, "KILL")


def _arbiter_is_back(scene: Scene) -> None:
    old = int(scene.notes.pop("arbiter"))
    until(lambda: arbiter_and_worker(scene.worker)[0] not in (0, old), "the engine starts the plugin again")
    until(lambda: plugin_answers(scene.worker), "the plugin answers")


def _kill_and_start_a_container(scene: Scene) -> None:
    """The engine repeats its calls until the plugin answers again."""
    _kill_arbiter(scene)
    scene.ground.run(scene.worker, scene.network)


def _kill_worker(scene: Scene) -> None:
    _, worker = arbiter_and_worker(scene.worker)
    scene.notes["worker"] = str(worker)
    signal(scene.worker, worker, "KILL")


def _worker_is_back(scene: Scene) -> None:
    old = int(scene.notes.pop("worker"))
    until(lambda: arbiter_and_worker(scene.worker)[1] not in (0, old), "there is a new worker")
    until(lambda: plugin_answers(scene.worker), "the plugin answers")


def _disable(scene: Scene) -> None:
    scene.worker.docker("plugin", "disable", "-f", DRIVER)


def _enable(scene: Scene) -> None:
    scene.worker.docker("plugin", "enable", DRIVER)


def _remove_plugin(scene: Scene) -> None:
    _disable(scene)
    scene.worker.docker("plugin", "rm", "-f", DRIVER)


def _install_again(scene: Scene) -> None:
    put(scene.worker, scene.built, PYOVERLAY_LOG_LEVEL="info")


def _empty_state(scene: Scene) -> None:
    """As an operator does with damaged files."""
    _disable(scene)
    for file in state_folder(scene.worker).glob("*.json"):
        file.unlink()


def _join_a_clone(scene: Scene) -> None:
    """A machine made from an image of the worker's, with its state, joins and starts a container."""
    clone = scene.lab.add_host("28.5")
    scene.notes["clone"] = clone.name
    put(clone, scene.built, PYOVERLAY_LOG_LEVEL="info")
    clone.docker("plugin", "disable", DRIVER)
    for file in state_folder(scene.worker).glob("*.json"):
        shutil.copy(file, state_folder(clone))
    clone.docker("plugin", "enable", DRIVER)
    scene.lab.join(clone)
    until(lambda: node_is(scene, clone, "Ready"), "the clone is a node", 60)
    scene.anchor(clone)
    scene.checker.right_within(20)
    same = {str(state(host)["host"]["id"]) for host in (clone, scene.worker)}
    assert len(same) == 2, "two hosts have one identity"


def _remove_the_clone(scene: Scene) -> None:
    clone = scene.lab.host(scene.notes.pop("clone"))
    scene.anchors.pop(clone.name).remove()
    scene.ground.containers[:] = [c for c in scene.ground.containers if c.host is not clone]
    scene.checker.right_within(20)
    clone.docker("swarm", "leave")
    until(lambda: node_is(scene, clone, "Down"), "the clone has left", 60)
    scene.lab.remove_host(clone)
    scene.ground.manager.docker("node", "rm", "-f", clone.name)


SECOND = "pyoverlay2:latest"


def _enable_a_second_copy(scene: Scene) -> None:
    """Under another alias; it is refused, and told whose the networks are."""
    host = scene.worker
    config = scene.built / "config.json"
    host.put_plugin(scene.built / "rootfs", config, SECOND, enable=False)
    said = host.engine_log().count("already belong to the plugin")
    refused = host.run(["docker", "plugin", "enable", SECOND], check=False)
    assert refused.returncode != 0, "two copies are enabled at a time"
    until(lambda: host.engine_log().count("already belong to the plugin") > said, "it is told why", 5)


def _remove_the_second_copy(scene: Scene) -> None:
    scene.worker.docker("plugin", "rm", SECOND)


def _push_and_disable(scene: Scene) -> None:
    """Put a version with one file more into the lab's registry, from a host that does not run it."""
    scene.notes["version"] = unique("version")
    host, reference = scene.lab.hosts[0], f"{scene.lab.registry()}/pyoverlay:latest"
    staged = host.folder / "next"
    subprocess.run(["cp", "-a", scene.built, staged], check=True)
    (staged / "rootfs" / scene.notes["version"]).touch()
    host.docker("plugin", "create", reference, str(staged), timeout=180)
    host.docker("plugin", "push", reference, timeout=180)
    host.docker("plugin", "rm", reference)
    shutil.rmtree(staged)
    _disable(scene)


def _upgrade(scene: Scene) -> None:
    host, reference = scene.worker, f"{scene.lab.registry()}/pyoverlay:latest"
    argv = ["upgrade", "--grant-all-permissions", "--skip-remote-check", DRIVER, reference]
    host.docker("plugin", *argv, timeout=180)
    host.docker("plugin", "enable", DRIVER)
    new = state_folder(host).parent / "rootfs" / scene.notes.pop("version")
    assert new.exists(), "it is still the old version"


def _silence_most(scene: Scene) -> None:
    """Stop the plugin's processes on all hosts but the worker; the leader's etcd runs on."""
    scene.checker.right_within(5)
    for host in scene.lab.hosts:
        if host is not scene.worker:
            pair = arbiter_and_worker(host)
            scene.notes[f"silent {host.name}"] = " ".join(map(str, pair))
            for pid in pair:
                signal(host, pid, "STOP")


def _wake_most(scene: Scene) -> None:
    """Only after a look at what the worker has made of it: all rows are still there, and it says why."""
    rows = {vtep for space in read(scene.lab).hosts[-1].spaces.values() for _, vtep in space.fdb}
    for host in scene.lab.hosts:
        if host is not scene.worker:
            for pid in scene.notes.pop(f"silent {host.name}").split():
                signal(host, int(pid), "CONT")
    assert rows == {host.address for host in scene.lab.hosts if host is not scene.worker}, rows
    assert "more than half" in scene.worker.engine_log(), "nobody was told"


def _take_descriptors(scene: Scene) -> None:
    """No process of the plugin may open another descriptor."""
    for pid in arbiter_and_worker(scene.worker):
        limit = scene.worker.run(
            ["prlimit", "--pid", str(pid), "--nofile", "-o", "SOFT,HARD", "--noheadings"]
        )
        scene.notes[f"descriptors {pid}"] = ":".join(limit.stdout.split())
        scene.worker.run(["prlimit", "--pid", str(pid), "--nofile=3:"])


def _give_descriptors(scene: Scene) -> None:
    """First a container that cannot start, and its user is told why."""
    argv = ["docker", "run", "--rm", "--network", scene.network, "busybox:latest", "true"]
    refused = scene.worker.run(argv, check=False, timeout=90)
    for note in [note for note in scene.notes if note.startswith("descriptors")]:
        limit = scene.notes.pop(note)
        scene.worker.run(["prlimit", "--pid", note.split()[1], f"--nofile={limit}"], check=False)
    assert refused.returncode != 0, "a container started although no descriptor was left"


# --- the engine ---------------------------------------------------------------------------------------------


def _start(host: Host) -> None:
    host.start_engine()
    until(
        lambda: host.docker("info", "-f", "{{.Swarm.LocalNodeState}}") == "active", "in the Swarm again", 60
    )


def _stop_worker(scene: Scene) -> None:
    scene.worker.stop_engine()


def _kill_worker_engine(scene: Scene) -> None:
    scene.worker.stop_engine(kill=True)


def _reboot(scene: Scene) -> None:
    """All that is not on disk goes: processes, namespaces, devices, pins, and the engine's own traces."""
    host = scene.worker
    host.stop_engine(kill=True)
    host.run(["sh", "-c", REBOOT])
    left = host.run(["ip", "-br", "link", "show", "type", "veth"]).stdout.split()
    assert [name for name in left if name.startswith(("pyo", "veth"))] == [], left


REBOOT = f"""
for pid in $(ps -eo pid=,comm= | awk '$2 ~ /^(containerd|runc|docker)/ {{print $1}}'); do
  kill -9 $pid $(ps -o pid= --ppid $pid) 2>/dev/null
done
sleep 0.5
awk '{{print $2}}' /proc/mounts | grep -E '^/(run/docker/|var/lib/docker/|run/netns/{PREFIX})' |
  tac | xargs -n 1 umount -l
ip -o link show type veth | grep -oE '(veth|pyo)[^@:]*@' | tr -d @ | xargs -rn 1 ip link del
for device in docker0 docker_gwbridge; do ip link del $device; done
rm -rf /run/docker /run/docker.pid /run/docker.sock /run/netns/{PREFIX}*
"""


def _start_worker(scene: Scene) -> None:
    _start(scene.worker)


def _first_leader(scene: Scene) -> list[Host]:
    """Who led the Swarm when this was asked first: it may be another by now."""
    if "leader" not in scene.notes:
        scene.notes["leader"] = scene.leader.name
    return [scene.lab.host(scene.notes["leader"])]


def _kill_leader_engine(scene: Scene) -> None:
    _first_leader(scene)[0].stop_engine(kill=True)


def _start_leader(scene: Scene) -> None:
    _start(scene.lab.host(scene.notes.pop("leader")))
    until(lambda: leader_of(scene.lab), "the Swarm has a leader", 60)


# --- nodes --------------------------------------------------------------------------------------------------


def _cut(scene: Scene) -> None:
    scene.lab.cut(scene.worker)


def _heal(scene: Scene) -> None:
    scene.lab.heal(scene.worker)
    until(lambda: node_is(scene, scene.worker, "Ready"), "the node is ready again", 60)


CONTROL_PORTS = (("tcp", 2377), ("tcp", 7946), ("udp", 7946), ("tcp", 2389))
"""Swarm's, the engines' gossip, our store's."""


def control_planes(host: Host, *, cut: bool) -> None:
    """Drop, or let pass again, all that hosts tell each other but what tunnels carry."""
    for chain in ("INPUT", "OUTPUT"):
        for side in ("--dport", "--sport"):
            for protocol, port in CONTROL_PORTS:
                rule = [chain, "-p", protocol, side, str(port), "-j", "DROP"]
                host.run(["iptables", "-I" if cut else "-D", *rule])


def _cut_control(scene: Scene) -> None:
    control_planes(scene.worker, cut=True)


def _heal_control(scene: Scene) -> None:
    control_planes(scene.worker, cut=False)
    until(lambda: node_is(scene, scene.worker, "Ready"), "the node is ready again", 60)


def _two_managers(scene: Scene) -> list[Host]:
    """The leader and another manager."""
    (first,) = _first_leader(scene)
    return [first, next(host for host in scene.lab.hosts[:3] if host is not first)]


def _cut_two_managers(scene: Scene) -> None:
    for host in _two_managers(scene):
        scene.lab.cut(host)


def _heal_two_managers(scene: Scene) -> None:
    two = _two_managers(scene)
    for host in two:
        scene.lab.heal(host)
    until(lambda: leader_of(scene.lab), "the Swarm has a leader again", 60)
    until(lambda: all(node_is(scene, host, "Ready") for host in two), "all nodes are ready", 60)
    del scene.notes["leader"]


def _leave(scene: Scene) -> None:
    scene.anchors.pop(scene.worker.name).remove()
    scene.worker.docker("swarm", "leave")


def _join_again(scene: Scene) -> None:
    scene.lab.join(scene.worker)
    until(lambda: node_is(scene, scene.worker, "Ready"), "the node is ready again", 60)
    down = scene.ground.manager.docker("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}")
    for line in down.splitlines():
        identity, name, status = line.replace("*", "").split()
        if (name, status) == (scene.worker.name, "Down"):
            scene.ground.manager.docker("node", "rm", "-f", identity)
    scene.anchor(scene.worker)


def node_is(scene: Scene, host: Host, status: str) -> bool:
    """Whether a manager that runs says so of a node; one that has left and one that is there share a name."""
    asked = next(h for h in scene.lab.hosts[:3] if h.engine_running)
    listed = asked.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}", check=False).splitlines()
    return f"{host.name} {status}" in listed


def _new_address(scene: Scene) -> None:
    host = scene.worker
    fresh = host.address.rpartition(".")[0] + ".200"
    host.spaces.ip(f"addr add {fresh}/24 dev {host.interface}")
    _set_vtep(scene, fresh)
    scene.expected.vteps[host.name] = fresh
    scene.checker.right_within(10)


def _old_address(scene: Scene) -> None:
    host = scene.worker
    _set_vtep(scene, host.address)
    fresh = scene.expected.vteps.pop(host.name)
    scene.checker.right_within(10)
    host.spaces.ip(f"addr del {fresh}/24 dev {host.interface}")


def _set_vtep(scene: Scene, address: str) -> None:
    reconfigure(scene.worker, f"PYOVERLAY_VTEP={address}")


def _lower_mtu(scene: Scene) -> None:
    _set_mtu(scene, 1400)


def _raise_mtu(scene: Scene) -> None:
    _set_mtu(scene, 1500)


def _set_mtu(scene: Scene, mtu: int) -> None:
    for host in scene.lab.hosts:
        host.spaces.ip(f"link set {host.interface} mtu {mtu}")


def _rename(scene: Scene) -> None:
    scene.worker.spaces.ip(f"link set {scene.worker.interface} name moved0")


def _name_again(scene: Scene) -> None:
    scene.worker.spaces.ip(f"link set moved0 name {scene.worker.interface}")


def _address_here(scene: Scene) -> None:
    other = scene.lab.host("h2")
    first = scene.ground.run(other, scene.network)
    scene.notes["moving"] = first.address(scene.network)
    scene.checker.right_within(5)
    first.remove()


def _address_there(scene: Scene) -> None:
    scene.ground.run(scene.worker, scene.network, "--ip", scene.notes.pop("moving"))


# --- the store ----------------------------------------------------------------------------------------------


def _etcd(scene: Scene) -> tuple[Host, int]:
    host = store_host(scene.lab)
    assert host is not None, "there is no store"
    return host, processes(host, "etcd --name=leader")[0]


def _kill_etcd(scene: Scene) -> None:
    host, pid = _etcd(scene)
    signal(host, pid, "KILL")


def _stop_etcd(scene: Scene) -> None:
    signal(*_etcd(scene), "STOP")


def _continue_etcd(scene: Scene) -> None:
    signal(*_etcd(scene), "CONT")


# --- the kernel and the disk --------------------------------------------------------------------------------


def _spaces(host: Host) -> list[str]:
    return [path.name for path in host.path("/run/netns").iterdir() if path.name.startswith(PREFIX)]


def _remove_rows(scene: Scene) -> None:
    """Every row with a destination, the replication rows among them, and every neighbour."""
    script = """
for device in $(ip -n $1 -br link show type vxlan | sed 's/[ @].*//'); do
  bridge -n $1 fdb show dev $device | sed -n 's/^\\([^ ]*\\) dst \\([^ ]*\\) .*/\\1 \\2/p' |
    while read mac dst; do bridge -n $1 fdb del $mac dev $device dst $dst self; done
  ip -n $1 neigh flush dev $device nud permanent
done
"""
    scene.notes["repairs"] = str(_repairs(scene.worker))
    for name in _spaces(scene.worker):
        scene.worker.run(["sh", "-ec", script, "sh", name])


def _repaired(scene: Scene) -> None:
    """The plugin has said what it found, and that it was somebody else's doing."""
    seen = int(scene.notes.pop("repairs"))
    until(lambda: _repairs(scene.worker) > seen, "the repair is in the log", 2)


def _repairs(host: Host) -> int:
    return host.engine_log().count("repaired: ")


def _remove_device(scene: Scene) -> None:
    script = "ip -n $1 -br link show type vxlan | sed 's/[ @].*//' | xargs -n 1 ip -n $1 link del"
    scene.notes["repairs"] = str(_repairs(scene.worker))
    for name in _spaces(scene.worker):
        scene.worker.run(["sh", "-ec", script, "sh", name])


def _fill_disk(scene: Scene) -> None:
    """A small disk over the state folder, as the plugin sees it, then full; the state file goes along."""
    host, folder = scene.worker, state_folder(scene.worker)
    inside = "/" + str(folder).split("/root/", 1)[1]
    kept = host.folder / "state"
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    host.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", inside])
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    host.run(["sh", "-c", f"cat /dev/zero >{inside}/ballast 2>/dev/null"], check=False)
    scene.notes["disk"] = inside


def _empty_disk(scene: Scene) -> None:
    """First a container that cannot start and says why, then room again, then the old disk."""
    host, inside = scene.worker, scene.notes.pop("disk")
    argv = ["docker", "run", "--rm", "--network", scene.network, "busybox:latest", "true"]
    refused = host.run(argv, check=False, timeout=60)
    assert refused.returncode != 0, "a container started although its endpoint could not be recorded"
    assert "No space left on device" in refused.stderr, refused.stderr
    host.run(["rm", f"{inside}/ballast"])
    accepted = host.run(argv, check=False, timeout=60)
    assert accepted.returncode == 0, accepted.stderr
    kept = host.folder / "state"
    shutil.copytree(state_folder(host), kept, dirs_exist_ok=True)
    host.run(["umount", inside])
    shutil.copytree(kept, state_folder(host), dirs_exist_ok=True)


def _stop_container_while_away(scene: Scene) -> None:
    gone = scene.ground.run(scene.worker, scene.network)
    scene.checker.right_within(5)
    _disable(scene)
    gone.remove()
    assert wait_for(lambda: not scene.worker.docker("ps", "-q", "--filter", f"name=^{gone.name}$"), 20)


def _leader_host(scene: Scene) -> list[Host]:
    return [scene.leader]


FAULTS = (
    Fault("plugin killed", _kill_arbiter, _arbiter_is_back, bound=10, smoke=True),
    Fault("container started while the plugin is killed", _kill_and_start_a_container, _arbiter_is_back),
    Fault("worker killed", _kill_worker, _worker_is_back, bound=10),
    Fault("plugin disabled and enabled", _disable, _enable, lasts=3, bound=10, smoke=True),
    Fault("plugin removed and installed", _remove_plugin, _install_again, bound=10),
    Fault("state folder emptied", _empty_state, _enable, bound=10),
    Fault("clone joined", _join_a_clone, _remove_the_clone, lasts=0, bound=15, churn=False),
    Fault("second copy of the plugin enabled", _enable_a_second_copy, _remove_the_second_copy, bound=10),
    Fault("plugin upgraded", _push_and_disable, _upgrade, bound=10, slow=True),
    Fault(
        "container stopped while the plugin was away",
        _stop_container_while_away,
        _enable,
        bound=10,
        churn=False,
    ),
    Fault("engine stopped and started", _stop_worker, _start_worker, traffic=Traffic.DEAD, bound=30),
    Fault(
        "engine killed and started",
        _kill_worker_engine,
        _start_worker,
        traffic=Traffic.DEAD,
        bound=30,
    ),
    Fault("host rebooted", _reboot, _start_worker, traffic=Traffic.DEAD, bound=30),
    Fault("host cut off for 5 s", _cut, _heal, traffic=Traffic.CUT, lasts=5, bound=10, smoke=True),
    Fault("host cut off for 30 s", _cut, _heal, traffic=Traffic.CUT, lasts=30, bound=10),
    Fault("host cut off for 5 min", _cut, _heal, traffic=Traffic.CUT, lasts=300, bound=15, slow=True),
    Fault("host's control planes cut for 70 s", _cut_control, _heal_control, lasts=70, bound=15, slow=True),
    Fault("node leaves and joins again", _leave, _join_again, traffic=Traffic.DEAD, bound=10),
    Fault("address moves to another host", _address_here, _address_there, bound=5, lasts=0, churn=False),
    Fault("host gets another VTEP address and its old one again", _new_address, _old_address, bound=10),
    Fault("etcd killed", _kill_etcd, hosts=_leader_host, bound=15, smoke=True),
    Fault("etcd hangs for 5 s", _stop_etcd, _continue_etcd, hosts=_leader_host, lasts=5, bound=15),
    Fault(
        "Swarm leader's engine killed",
        _kill_leader_engine,
        _start_leader,
        hosts=_first_leader,
        traffic=Traffic.DEAD,
        lasts=15,
        bound=30,
    ),
    Fault(
        "two managers of three lost and back",
        _cut_two_managers,
        _heal_two_managers,
        hosts=_two_managers,
        traffic=Traffic.CUT,
        lasts=20,
        bound=15,
        churn=False,
    ),
    Fault(
        "rows removed by hand", _remove_rows, _repaired, traffic=Traffic.BLINK, lasts=0, bound=2, churn=False
    ),
    Fault(
        "VXLAN device removed by hand",
        _remove_device,
        _repaired,
        traffic=Traffic.BLINK,
        lasts=0,
        bound=2,
        churn=False,
    ),
    Fault("underlay's MTU lowered and raised", _lower_mtu, _raise_mtu, lasts=2, bound=5),
    Fault("underlay's interface renamed and back", _rename, _name_again, lasts=2, bound=5),
    Fault("out of descriptors", _take_descriptors, _give_descriptors, bound=10),
    Fault("more than half of the nodes silent", _silence_most, _wake_most, lasts=60, churn=False, slow=True),
    Fault("disk full", _fill_disk, _empty_disk, bound=10),
)
