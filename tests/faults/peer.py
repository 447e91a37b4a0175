"""A host of the control plane that announces the endpoints whose numbers it reads, and prints what it knows.

python -m tests.faults.peer NAME URL CREDENTIALS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from driver.cluster.etcd.plane import EtcdControlPlane
from driver.cluster.etcd.tls import TlsSessions
from driver.swarm.identity import swarm_credentials
from driver.wish.records import View
from driver.wish.values import NodeId
from tests.cluster.harness import NET, Host, endpoint


def say(view: View) -> None:
    rows = sorted(str(address) for address in view.endpoints.get(NET, {}))
    print(json.dumps({"time": time.time(), "connected": view.connected, "rows": rows}), flush=True)


def main(name: str, url: str, folder: str) -> None:
    plane = EtcdControlPlane(NodeId(name), lambda: [url], TlsSessions(swarm_credentials(Path(folder))))
    plane.start(say)
    host = Host(name, plane)
    for line in sys.stdin:
        host.join(*(endpoint(name, int(number)) for number in line.split()))
    plane.stop(leave=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
