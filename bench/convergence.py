"""How long after `docker network connect` has returned a container is reachable from other hosts.

    .venv/bin/python -m bench.convergence [--quick]

From one and from two other hosts: pyoverlay and Docker's built-in overlay in turn, on the same engines, in
the same run. A prober in a container of each other host sends an ICMP echo request every millisecond, from
before the connect. It knows the target's MAC, so that what is timed is the forwarding of frames and not ARP's
retry. A first reply before connect has returned counts as 0 ms. From ten other hosts: see `bench.agents`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.calls import connect, disconnect
from bench.figures import BUILT_IN, OURS, Figures, Measure
from bench.report import alone
from bench.scene import DRIVERS, apart, turns
from tests.e2e.containers import Container, Playground, eventually, playground
from tests.lab import Host, Lab

PROBE = """
import select, socket, struct, sys, time
target, seconds = sys.argv[1], float(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
head = struct.pack("!BBHHH", 8, 0, 0, 4242, 1)
packet = struct.pack("!BBHHH", 8, 0, checksum(head), 4242, 1)
print("ready", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    try:
        s.sendto(packet, (target, 0))
    except OSError:
        pass
    if select.select([s], [], [], 0.001)[0]:
        data, (source, _) = s.recvfrom(2000)
        if source == target and data[20] == 0:
            print(time.monotonic(), flush=True)
            break
else:
    print("never", flush=True)
"""

PART = "convergence"
SUBNETS = {OURS: "10.250.1", BUILT_IN: "10.250.2"}


@dataclass(frozen=True, slots=True)
class Stage:
    """A network, with a container of it on every host; the probers are those on all hosts but the last."""

    network: str
    probers: tuple[Container, ...]


def run(figures: Figures, lab: Lab, *, quick: bool) -> None:
    """Measure from every other host of *lab*, and from ten hosts without engines."""
    with playground(lab) as ground:
        target = ground.run(lab.hosts[-1], "bridge")
        stages = {name: stage(ground, name) for name in DRIVERS}
        for number in range(4 if quick else 25):
            for name in turns(number):
                delays = reach(stages[name], target, f"{SUBNETS[name]}.{100 + number}")
                for count in range(1, len(delays) + 1):
                    figures.add(reachable(count), name, max(delays[:count]))
    for kind, size in memory(lab.hosts[0]).items():
        figures.add(Measure(PART, f"memory of the plugin on the leader, {kind}, PSS", "MiB"), OURS, size)
    apart(figures, "bench.agents", "--rounds", "10" if quick else "100")


def reachable(count: int) -> Measure:
    """What is measured with *count* other hosts."""
    others = "another host" if count == 1 else f"all of {count} other hosts"
    return Measure(PART, f"reachable from {others} after connect returned", "ms")


def stage(ground: Playground, name: str) -> Stage:
    """Make a network that works between all hosts."""
    network = ground.network(subnet=f"{SUBNETS[name]}.0/24", driver=DRIVERS[name])
    *probers, keeper = ground.everywhere(network)
    address = keeper.address(network)
    if not all(eventually(lambda p=prober: p.pings(address)) for prober in probers):  # type: ignore[misc]
        raise RuntimeError(f"{name} does not work at all")
    return Stage(network, tuple(probers))


def reach(stage: Stage, target: Container, address: str) -> list[float]:
    """Connect *target* once; return for each prober the milliseconds until it is reached."""
    probes = []
    for prober in stage.probers:
        resolve(prober, address)
        probes.append(prober.popen(PROBE, address, "10"))
    for probe in probes:
        if probe.stdout.readline() != "ready\n":
            raise RuntimeError("a prober has not started")
    connect(target.host, stage.network, target.name, address)
    returned = time.monotonic()
    delays = [max(0.0, float(probe.communicate(timeout=15)[0]) - returned) * 1000 for probe in probes]
    disconnect(target.host, stage.network, target.name)
    return delays


def resolve(prober: Container, address: str) -> None:
    """Tell a prober's kernel the MAC that an address will have, which both drivers derive from it."""
    mac = "02:42:" + ":".join(f"{int(octet):02x}" for octet in address.split("."))
    device = prober.exec("sh", "-c", f"ip route get {address} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'")
    neighbour = ["ip", "neigh", "replace", address, "lladdr", mac, "dev", device]
    prober.host.run(["nsenter", "-t", prober.pid, "-n", *neighbour])


def memory(host: Host) -> dict[str, float]:
    """Return the MiB of the plugin's processes on a host: proportional set size, etcd's apart."""
    found = {"Python": 0.0, "etcd": 0.0}
    for pid in host.run(["pgrep", "-f", "plugin.cli|etcd --name"], check=False).stdout.split():
        rollup = host.run(["cat", f"/proc/{pid}/smaps_rollup"], check=False).stdout
        name = host.run(["cat", f"/proc/{pid}/comm"], check=False).stdout.strip()
        pss = [line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")]
        if pss and (name == "etcd" or name.startswith("python")):
            found["etcd" if name == "etcd" else "Python"] += int(pss[0]) / 1024
    return found


if __name__ == "__main__":
    alone(run, hosts=3)
