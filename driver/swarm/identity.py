"""The certificates that Swarm gives every node, used as they are on disk.

They are valid for 90 days, and the engine renews them in time.

Subject: O = the Swarm, OU = swarm-manager or swarm-worker, CN = the node; the role and the node are
also DNS names, and the certificate serves for clients and servers alike (swarmkit ca/certificates.go).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from driver.cluster.etcd.tls import Credentials

MANAGER_NAME: Final = "swarm-manager"
"""A worker's certificate does not bear it, so a worker cannot pose as the store."""

_CERTIFICATE: Final = "swarm-node.crt"
_COMMON_NAME: Final = bytes.fromhex("0603550403")
"""The object identifier 2.5.4.3 in DER (X.520); a string follows: its type, its length, its bytes."""

_REMEDY: Final = (
    "the Swarm's store is trusted by the Swarm's own certificates. If the Swarm is locked, run"
    " `docker swarm unlock` and `docker swarm update --autolock=false`; or set PYOVERLAY_STORE to a"
    " store of your own"
)


def swarm_credentials(folder: Path) -> Credentials:
    """Return this node's certificates in *folder*; they need not be there yet."""
    return Credentials(
        ca=folder / "swarm-root-ca.crt",
        certificate=folder / _CERTIFICATE,
        key=folder / "swarm-node.key",
        server_name=MANAGER_NAME,
        remedy=_REMEDY,
    )


def node_id(folder: Path) -> str:
    """Return this node's id in the Swarm, by its certificate in *folder*; empty when there is none."""
    try:
        chain = (folder / _CERTIFICATE).read_text()
        own, end, _ = chain.partition(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(own + end)
        # The issuer's name comes first, then the subject's (RFC 5280 section 4.1).
        subject = der.split(_COMMON_NAME)[2]
        return subject[2 : 2 + subject[1]].decode("ascii")
    except (OSError, ValueError, IndexError):
        return ""
