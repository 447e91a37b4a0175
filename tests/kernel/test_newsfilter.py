"""Listeners in namespaces with more tunnels than a jump of a filter can leave out, and than it can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from driver.kernel import degraded
from driver.kernel.netlink import links
from driver.kernel.netlink.events import HostListener, SpaceListener
from driver.kernel.netlink.socket import Channel
from driver.reconcile.plan import diff
from tests.kernel.hosts import Host, Space
from tests.kernel.samples import NS, network

pytestmark = pytest.mark.kernel

KEPT, TOO_MANY = 300, 2100
"""A filter has at most 4096 steps, two for each tunnel."""
LEARN = "bridge fdb replace 02:00:00:00:00:99 dev vx0 master dynamic"
ASK = "ip neigh replace 10.1.0.77 lladdr 02:00:00:00:00:05 dev br0 nud permanent"


@pytest.fixture
def overlay(host: Host) -> Iterator[Space]:
    assert host.kernel.apply(diff(network(), {})) == {}
    degraded._warn.cache_clear()
    with closing(host.overlay(NS)) as opened:
        yield opened


def listen(overlay: Space, tunnels: int) -> SpaceListener:
    """Make a listener that expects so many tunnels, the real one among them."""
    with closing(overlay.inside(Channel.here)) as channel:
        found = links.links(channel)
    (tunnel,) = [link for link in found.values() if link.name == "vx0"]
    others = {index: replace(tunnel, index=index) for index in range(10_000, 10_000 + tunnels - 1)}
    listener = overlay.inside(SpaceListener.here)
    listener.expect({**others, **found})
    listener.forget()
    return listener


@pytest.mark.parametrize("tunnels", [1, KEPT, TOO_MANY])
def test_rows_of_tunnels_are_heard_and_what_traffic_does_is_not(
    overlay: Space, caplog: pytest.LogCaptureFixture, tunnels: int
) -> None:
    with closing(listen(overlay, tunnels)) as listener:
        overlay.run(f"{LEARN}; {ASK}")
        listener.forget_all_but_rows([])
        assert not listener.has_kept_news
        overlay.run(f"{LEARN}; {ASK}; ip neigh del 10.1.0.77 dev br0")
        assert not listener.heard()
        overlay.run("bridge fdb del 02:42:0a:01:00:09 dev vx0 self")
        assert listener.heard()
        overlay.run("ip neigh del fd00:1::9 dev vx0")
        assert listener.heard()
        overlay.run("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.66 self permanent")
        listener.forget_all_but_rows([])
        assert listener.heard()
    assert caplog.text.count("every message of the kernel is looked at") == (1 if tunnels == TOO_MANY else 0)


def test_a_filter_that_fits_again_is_used_again(overlay: Space) -> None:
    with closing(listen(overlay, TOO_MANY)) as listener:
        listener.expect(overlay_links(overlay))
        listener.forget()
        overlay.run(LEARN)
        assert list(listener._messages()) == []


def overlay_links(overlay: Space) -> dict[int, links.Link]:
    with closing(overlay.inside(Channel.here)) as channel:
        return links.links(channel)


def test_without_a_filter_only_default_routes_are_news(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    degraded._warn.cache_clear()
    monkeypatch.setattr("driver.kernel.netlink.newsfilter.default_routes", lambda: bytes(8))
    host.run("ip link add u0 type veth peer name u1; ip link set u0 up; ip address add 192.0.2.1/24 dev u0")
    with closing(host.inside(HostListener.here)) as listener:
        host.run("ip route add 10.9.0.0/16 via 192.0.2.254")
        assert not listener.heard()
        host.run("ip route add default via 192.0.2.254")
        assert listener.heard()
    assert caplog.text.count("every message of the kernel is looked at") == 1
