"""Bad input gets a sentence where the user looks, and leaves nothing half-made."""

from __future__ import annotations

import pytest

from tests.e2e.containers import Playground, eventually


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "vni=16777216"], ["vni", "16777216", "1 to 16777215"]),
        (["-o", "vxlan_port=99999"], ["vxlan_port", "99999", "65535"]),
        (["-o", "mtu=12"], ["mtu", "12", "576"]),
        (["-o", "colour=blue"], ["colour", "blue", "remove it"]),
    ],
)
def test_a_bad_network_option_is_what_service_ps_shows(
    ground: Playground, options: list[str], words: list[str]
) -> None:
    network = ground.network(*options)
    service = ground.service(network, 1, "--endpoint-mode", "dnsrr")
    shown = eventually(
        lambda: ground.manager.docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", service), 30
    )
    for word in words:
        assert word in shown
    refused = ground.manager.docker("network", "inspect", "-f", "{{json .Options}}", network)
    assert "pyoverlay.refused" in refused


def test_a_vni_that_another_network_has(ground: Playground) -> None:
    ground.network("-o", "vni=70999")
    second = ground.network("-o", "vni=70999")
    refused = eventually(
        lambda: ground.manager.docker("network", "inspect", "-f", "{{json .Options}}", second), 10
    )
    assert "vni: 70999 is used by another network" in refused


def test_a_foreign_device_with_our_vni_is_named_and_left_alone(ground: Playground) -> None:
    network = ground.network("-o", "vni=70888")
    h1 = ground.lab.hosts[0]
    h1.spaces.ip("link add foreign0 type vxlan id 70888 dstport 4789 dev eth0")
    try:
        with pytest.raises(Exception, match="70888") as failure:
            ground.run(h1, network)
        assert "4789" in str(failure.value)
        assert "foreign0" in h1.run(["ip", "link"]).stdout
    finally:
        h1.spaces.ip("link del foreign0")
    assert ground.run(h1, network).address(network)
