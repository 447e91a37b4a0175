"""The certificates that Swarm gives every node, used as they are on disk.

They are valid for 90 days, and the engine renews them in time.

Subject: O = the Swarm, OU = swarm-manager or swarm-worker, CN = the node; the role and the node are
also DNS names, and the certificate serves for clients and servers alike (swarmkit ca/certificates.go).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from driver.cluster.etcd.tls import Credentials

MANAGER_NAME: Final = "swarm-manager"
"""A worker's certificate does not bear it, so a worker cannot pose as the store."""

_REMEDY: Final = (
    "the Swarm's store is trusted by the Swarm's own certificates. If the Swarm is locked, run"
    " `docker swarm unlock` and `docker swarm update --autolock=false`; or set PYOVERLAY_STORE to a"
    " store of your own"
)


def swarm_credentials(folder: Path) -> Credentials:
    """Return this node's certificates in *folder*; they need not be there yet."""
    return Credentials(
        ca=folder / "swarm-root-ca.crt",
        certificate=folder / "swarm-node.crt",
        key=folder / "swarm-node.key",
        server_name=MANAGER_NAME,
        remedy=_REMEDY,
    )
