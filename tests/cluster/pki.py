"""Certificates shaped as Swarm's, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from driver.cluster.etcd.tls import Credentials
from driver.swarm.identity import swarm_credentials


class Authority:
    """A Swarm's root certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *(
                "-keyout",
                str(self._key),
                "-out",
                str(self.certificate),
                "-days",
                "30",
                "-subj",
                "/CN=swarm-ca",
            ),
        )

    def node(
        self, name: str, role: str = "swarm-manager", folder: Path | None = None, days: int = 30
    ) -> Path:
        """Write a node's three files as Swarm lays them out; again, to renew them. Return the folder."""
        folder = folder or self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        request, config = folder / "request", folder / "extensions"
        key, certificate = folder / "new.key", folder / "new.crt"
        config.write_text(
            f"subjectAltName=DNS:{role},DNS:{name},DNS:the-swarm\n"
            "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature,keyEncipherment\n"
            "basicConstraints=CA:FALSE\n"
        )
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key)),
            *("-out", str(request), "-subj", f"/O=the-swarm/OU={role}/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", str(days), "-extfile", str(config), "-out", str(certificate)),
        )
        _add_headers(key)
        key.replace(folder / "swarm-node.key")
        certificate.replace(folder / "swarm-node.crt")
        (folder / "swarm-root-ca.crt").write_bytes(self.certificate.read_bytes())
        return folder

    def credentials(self, name: str, role: str = "swarm-manager") -> Credentials:
        return swarm_credentials(self.node(name, role))


def lock(folder: Path, passphrase: str = "SWMKEY-1") -> None:
    """Encrypt a node's key, as `docker swarm update --autolock` does."""
    key = folder / "swarm-node.key"
    plain = folder / "plain.key"
    plain.write_text("".join(f"{x}\n" for x in key.read_text().splitlines() if x and ":" not in x))
    _openssl("pkcs8", "-topk8", "-in", str(plain), "-passout", f"pass:{passphrase}", "-out", str(key))
    plain.unlink()


def _add_headers(key: Path) -> None:
    """Add the headers that swarmkit keeps in the key's file."""
    first, *rest = key.read_text().splitlines()
    headers = ["kek-version: 0", "raft-dek: EiDLSmxyb2Nr/bGp1c3QgYSB0ZXN0Cg==", ""]
    key.write_text("\n".join([first, *headers, *rest, ""]))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=20)
