"""How long `docker network connect` takes, and how long after it a container is reachable from another host.

pyoverlay and Docker's built-in overlay in turn, on the same engines, in the same run:

    .venv/bin/python -m bench.reachable [--pairs 20] [--engine 28.5]

A prober in a container of the other host sends an ICMP echo request every millisecond, from before the
connect. It knows the target's MAC, so that what is timed is the forwarding of frames and not ARP's retry. A
first reply before connect returned counts as 0 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from tests.e2e.conftest import in_swarm, put
from tests.e2e.containers import Container, Playground, eventually, playground
from tests.lab import Host, Lab, build_plugin

ROOT = Path(__file__).parent.parent

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


def measure(prober: Container, target: Container, network: str, address: str) -> tuple[float, float]:
    """Connect *target* to *network* once; return the command's seconds and those until it is reachable."""
    mac = "02:42:" + ":".join(f"{int(octet):02x}" for octet in address.split("."))
    device = prober.exec("sh", "-c", f"ip route get {address} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'")
    prober.host.run(
        ["nsenter", "-t", prober.pid, "-n", "ip", "neigh", "replace", address, "lladdr", mac, "dev", device]
    )
    probe = prober.popen(PROBE, address, "10")
    assert probe.stdout.readline() == "ready\n"
    began = time.monotonic()
    target.host.docker("network", "connect", "--ip", address, network, target.name)
    returned = time.monotonic()
    reached = float(probe.communicate(timeout=15)[0])
    target.host.docker("network", "disconnect", network, target.name)
    return returned - began, max(0.0, reached - returned)


def memory(host: Host) -> dict[str, float]:
    """MiB of the plugin's processes on a host: proportional set size, Python's and etcd's apart."""
    found = {"python": 0.0, "etcd": 0.0}
    for pid in host.run(["pgrep", "-f", "plugin.cli|etcd --name"], check=False).stdout.split():
        rollup = host.run(["cat", f"/proc/{pid}/smaps_rollup"], check=False).stdout
        name = host.run(["cat", f"/proc/{pid}/comm"], check=False).stdout.strip()
        pss = [line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")]
        if pss and (name == "etcd" or name.startswith("python")):
            found["etcd" if name == "etcd" else "python"] += int(pss[0]) / 1024
    return {kind: round(size, 1) for kind, size in found.items()}


def compare(ground: Playground, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Measure both drivers in turn, *pairs* times each."""
    h1, h2 = ground.lab.hosts[:2]
    networks = {
        "pyoverlay": ground.network(subnet="10.250.1.0/24"),
        "overlay": ground.network(subnet="10.250.2.0/24", driver="overlay"),
    }
    idle = ground.network(subnet="10.250.3.0/24")
    target = ground.run(h2, idle)
    probers = {name: ground.run(h1, network) for name, network in networks.items()}
    keep = {name: ground.run(h2, network) for name, network in networks.items()}
    assert all(eventually(lambda n=n: probers[n].pings(keep[n].name)) for n in networks)  # type: ignore[misc]
    results: dict[str, dict[str, list[float]]] = {n: {"connect": [], "reachable": []} for n in networks}
    for pair in range(pairs):
        for name, network in networks.items():
            third = {"pyoverlay": 1, "overlay": 2}[name]
            connect, reachable = measure(probers[name], target, network, f"10.250.{third}.{100 + pair}")
            results[name]["connect"].append(connect * 1000)
            results[name]["reachable"].append(reachable * 1000)
    return results


def report(results: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, spread and the ratio."""
    for what in ("connect", "reachable"):
        for name, figures in results.items():
            sample = figures[what]
            print(
                f"{what:10} {name:10} median {statistics.median(sample):7.1f} ms"
                f"   min {min(sample):7.1f}   max {max(sample):7.1f}   n={len(sample)}"
            )
    pairs = zip(results["pyoverlay"]["connect"], results["overlay"]["connect"], strict=True)
    print(f"connect, ours / built-in, pair by pair: median {statistics.median(a / b for a, b in pairs):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--engine", default="28.5")
    arguments = parser.parse_args()
    with Lab(engines=[arguments.engine] * 2) as lab:
        for host in lab.hosts:
            put(host, build_plugin(ROOT), PYOVERLAY_LOG_LEVEL="info")
        lab.swarm()
        eventually(lambda: all(in_swarm(host) for host in lab.hosts), 30)
        with playground(lab) as ground:
            report(compare(ground, arguments.pairs))
        print("memory (MiB, PSS):", json.dumps({host.name: memory(host) for host in lab.hosts}))


if __name__ == "__main__":
    main()
