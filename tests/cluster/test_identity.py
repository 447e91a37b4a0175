"""Who this node is in its Swarm, by its certificate."""

from __future__ import annotations

from pathlib import Path

from driver.swarm.identity import node_id
from tests.cluster.pki import Authority


def test_the_certificate_tells_the_node_also_when_it_is_renewed(tmp_path: Path) -> None:
    swarm = Authority(tmp_path / "pki")
    name = "u4m9hzge31tsafr3nembuizn6"
    folder = swarm.node(name, role="swarm-worker")
    assert node_id(folder) == name
    swarm.node(name, role="swarm-manager", folder=folder)
    assert node_id(folder) == name
    file = folder / "swarm-node.crt"
    file.write_text(file.read_text() + swarm.certificate.read_text())  # the engine writes the whole chain
    assert node_id(folder) == name


def test_without_one_nobody_knows(tmp_path: Path) -> None:
    assert node_id(tmp_path) == ""
    for damaged in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        (tmp_path / "swarm-node.crt").write_text(damaged)
        assert node_id(tmp_path) == ""
