"""How quick and how costly the control plane is: `python -m tests.cluster.measure [--tls]`.

Announcing and hearing host are processes of their own; CLOCK_MONOTONIC is one for both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import PlainSessions, Sessions, TlsSessions
from driver.swarm.etcd_process import EtcdProcess, EtcdSettings
from driver.swarm.identity import swarm_credentials
from driver.wish.records import View
from driver.wish.values import NetworkId, NodeId
from tests.cluster.harness import NET, Host, endpoint, start_members, wait_until
from tests.cluster.pki import Authority
from tests.cluster.relay import free_port
from tests.lab import etcd_binary

ROUNDS = 200
BURST = 1000


def sessions_of(folder: str) -> Sessions:
    return TlsSessions(swarm_credentials(Path(folder))) if folder else PlainSessions()


def hear(urls: list[str], folder: str) -> None:
    """Print when each record was first in a view, as JSON, one a line."""
    known: set[str] = set()

    def on_view(view: View) -> None:
        now = time.monotonic()
        for record in view.endpoints.get(NET, {}).values():
            if record.endpoint not in known:
                known.add(record.endpoint)
                sys.stdout.write(f"{json.dumps([record.endpoint, now])}\n")
        sys.stdout.flush()

    host = Host("b", EtcdControlPlane(NodeId("b"), lambda: urls, sessions_of(folder)))
    host.plane.start(on_view)
    host.join()
    assert host.published()
    sys.stdout.write('["ready", 0]\n')
    sys.stdout.flush()
    sys.stdin.readline()
    cpu, wall = time.process_time(), time.monotonic()
    sys.stdin.readline()
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    sys.stdout.write(f"{json.dumps(['rest', share, rss])}\n")
    host.plane.stop(leave=True)


def quantiles(name: str, seconds: list[float]) -> None:
    ordered = sorted(1000 * s for s in seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    print(f"{name}: median {statistics.median(ordered):.1f} ms, p99 {p99:.1f} ms, n={len(ordered)}")


def measure(urls: list[str], folder: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.measure", "--hear", json.dumps(urls), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        heard = process.stdout

        def await_line(name: str) -> float:
            while True:
                found, at, *_ = json.loads(heard.readline())
                if found == name:
                    return float(at)

        await_line("ready")
        a = Host("a", EtcdControlPlane(NodeId("a"), lambda: urls, sessions_of(folder))).start()
        a.join()
        assert a.published()
        latencies, waits, follows = [], [], []
        for i in range(ROUNDS):
            record = endpoint("a", i)
            start = time.monotonic()
            a.join(record)
            assert a.plane.wait_published(2)
            waits.append(time.monotonic() - start)
            latencies.append(await_line(record.endpoint) - start)
            time.sleep(0.01)
        quantiles("publish -> view of another host", latencies)
        quantiles("publish -> wait_published", waits)
        for i in range(100):
            start = time.monotonic()
            a.join(networks=(NET, NetworkId(f"new{i}")))
            assert a.plane.wait_published(2)
            follows.append(time.monotonic() - start)
            time.sleep(0.01)
        quantiles("publish -> a network newly followed is read", follows)
        records = [endpoint("a", 1000 + i) for i in range(BURST)]
        start = time.monotonic()
        a.join(*records)
        assert a.plane.wait_published(10)
        put = time.monotonic() - start
        missing = {r.endpoint for r in records}
        last = start
        while missing:
            name, at, *_ = json.loads(heard.readline())
            missing.discard(name)
            last = max(last, at)
        print(f"burst of {BURST}: put in {1000 * put:.0f} ms, at the other in {1000 * (last - start):.0f} ms")
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(30)
        process.stdin.write("\n")
        process.stdin.flush()
        _, share, rss = json.loads(heard.readline())
        print(f"at rest (30 s, {BURST} records): {100 * share:.2f} % CPU, process of {rss:.0f} MiB")
        a.plane.stop(leave=True)


def measure_leader_kill(binary: Path, folder: Path) -> None:
    times = []
    for turn in range(5):
        members = start_members(binary, folder / str(turn), 3)
        try:
            leader = next(m for m in members if m.is_leader())
            urls = [leader.url, *(m.url for m in members if m is not leader)]
            a = Host("a", EtcdControlPlane(NodeId("a"), lambda urls=urls: urls)).start()  # type: ignore[misc]
            a.join()
            assert a.published()
            leader.kill()
            start = time.monotonic()
            wait_until(lambda a=a: not a.view.connected)  # type: ignore[misc]
            a.join(endpoint("a", 1))
            assert a.published(20)
            times.append(time.monotonic() - start)
            a.plane.stop(leave=False)
        finally:
            for member in members:
                member.kill()
    quantiles("leader killed -> announcing again", times)


def main() -> None:
    if sys.argv[1:2] == ["--hear"]:
        hear(json.loads(sys.argv[2]), sys.argv[3])
        return
    binary = etcd_binary()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("plain, three members")
        members = start_members(binary, folder / "cluster", 3)
        try:
            measure([m.url for m in members], "")
        finally:
            for member in members:
                member.kill()
        print("mutual TLS, one member as a Swarm leader runs it")
        authority = Authority(folder / "pki")
        settings = EtcdSettings(str(binary), folder / "etcd", free_port(), authority.credentials("m1"))
        starts = []
        for _ in range(5):
            server = EtcdProcess(settings, "127.0.0.1")
            start = time.monotonic()
            server.start()
            assert server.wait_healthy(5)
            starts.append(time.monotonic() - start)
            if len(starts) < 5:
                server.stop()
        quantiles("etcd ready", starts)
        try:
            measure([server.url], str(authority.node("w1", "swarm-worker")))
            assert server._process is not None
            stat = Path(f"/proc/{server._process.pid}/stat").read_text().split()
            cpu = (int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK")
            time.sleep(20)
            stat = Path(f"/proc/{server._process.pid}/stat").read_text().split()
            rest = (int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK") - cpu
            rss = int(stat[23]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            print(f"etcd, nobody connected: {100 * rest / 20:.2f} % CPU, {rss:.0f} MiB")
        finally:
            server.stop()
        measure_leader_kill(binary, folder / "kill")


if __name__ == "__main__":
    main()
