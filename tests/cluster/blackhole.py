"""Run in a network namespace of its own: how long until a path that swallows everything is noticed.

Prints the seconds for an idle host. Started by test_etcd_faults.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from driver.cluster.etcd.client import EtcdClient, EtcdError
from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import PlainSessions
from driver.wish.values import NodeId
from tests.cluster.harness import Host, endpoint, start_members, wait_until


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        (member,) = start_members(Path(sys.argv[1]), Path(folder), 1)
        host = Host("a", EtcdControlPlane(NodeId("a"), lambda: [member.url], lease_ttl=60)).start()
        host.join(endpoint("a", 1))
        assert host.published()
        client = EtcdClient(member.url, PlainSessions().session())
        watch = client.watch(["/"])
        watch.wait_open()
        time.sleep(1)
        rules = "add table inet t; add chain inet t c { type filter hook input priority 0; };" + "".join(
            f"add rule inet t c tcp {way} {member.port} drop;" for way in ("dport", "sport")
        )
        subprocess.run(["nft", rules], check=True)
        start = time.monotonic()
        print(wait_until(lambda: not host.view.connected, 20))
        try:
            list(watch)
        except EtcdError:
            print(time.monotonic() - start)
        watch.close()
        client.close()
        host.plane.stop(leave=False)
        member.kill()


if __name__ == "__main__":
    main()
