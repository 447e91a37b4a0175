"""Frames from other hosts go past the bridge, on real engines; when that is taken away it comes back."""

from __future__ import annotations

import platform

import pytest

from tests.e2e.conftest import reconfigure
from tests.e2e.containers import Container, Playground, eventually
from tests.e2e.test_wire import transfer

PINGS = 200

pytestmark = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 7), reason="Linux 6.7 brings shortcuts"
)


def space(container: Container, network: str) -> str:
    """The name of the network's namespace on the container's host."""
    identity = container.facts(network)["NetworkID"]
    return f"pyoverlay-{identity[:12]}"


def inside(container: Container, network: str, script: str) -> str:
    """Run a shell script in the network's namespace; $tunnel is its VXLAN device."""
    tunnel = "tunnel=$(ip -br link show type vxlan | sed 's/[ @].*//');"
    argv = ["ip", "netns", "exec", space(container, network), "sh", "-ec", tunnel + script]
    return container.host.run(argv).stdout


def sent_through_port(container: Container, network: str) -> int:
    """Packets that the container got over the bridge."""
    port = f"port{container.facts(network)['EndpointID'][:11]}"
    return int(inside(container, network, f"cat /sys/class/net/{port}/statistics/tx_packets"))


def over_the_bridge(one: Container, other: Container, network: str) -> int:
    """How many of many pings from *other* have come to *one* over the bridge."""
    before = sent_through_port(one, network)
    sent = other.exec("ping", "-q", "-i", "0.01", "-c", str(PINGS), one.address(network))
    assert f"{PINGS} packets received" in sent
    return sent_through_port(one, network) - before


def is_on(container: Container, network: str) -> bool:
    return "pyoverlay" in inside(container, network, "tc filter show dev $tunnel ingress")


@pytest.fixture
def pair(ground: Playground) -> tuple[str, Container, Container]:
    """A network, and two containers of it on two hosts."""
    network = ground.network()
    h1, h2, _ = ground.lab.hosts
    one, two = ground.run(h1, network), ground.run(h2, network)
    assert one.pings(two.address(network))
    return network, one, two


def test_frames_go_past_the_bridge(pair: tuple[str, Container, Container]) -> None:
    """All but what the bridge needs to go on learning: one frame a minute."""
    network, one, two = pair
    assert is_on(one, network)
    assert over_the_bridge(one, two, network) < PINGS / 20
    transfer(two, one, network)


def test_a_filter_that_somebody_removed_is_there_again(pair: tuple[str, Container, Container]) -> None:
    network, one, two = pair
    said = one.host.engine_log().count("repaired: shortcut")
    inside(one, network, "tc qdisc del dev $tunnel clsact")
    assert eventually(lambda: is_on(one, network), 2)
    assert over_the_bridge(one, two, network) < PINGS / 20
    assert eventually(lambda: one.host.engine_log().count("repaired: shortcut") == said + 1, 2)


def test_it_can_be_switched_off(ground: Playground, pair: tuple[str, Container, Container]) -> None:
    """Where somebody mistrusts it: then all takes the bridge, without a restart of any container."""
    network, one, two = pair
    reconfigure(one.host, "PYOVERLAY_SHORTCUT=off")
    try:
        assert eventually(lambda: over_the_bridge(one, two, network) >= PINGS, 10)
    finally:
        reconfigure(one.host, "PYOVERLAY_SHORTCUT=auto")
    assert eventually(lambda: over_the_bridge(one, two, network) < PINGS / 20, 10)
    assert eventually(lambda: ground.offered(one.host), 30)
