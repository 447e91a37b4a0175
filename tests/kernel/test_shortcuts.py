"""Shortcuts past the bridge: who takes them, who does not, and what becomes of them."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from driver.kernel.host import NetlinkKernel
from driver.kernel.kinds import Shortcut
from driver.kernel.names import namespace_name, port_name
from driver.kernel.objects import Key
from driver.kernel.ops import Delete, Set
from driver.kernel.shortcuts import bpf
from driver.kernel.shortcuts.bpf import Rows
from driver.reconcile.plan import diff
from driver.wish.values import EndpointId, Mac, NetworkId
from tests.kernel.hosts import Host, Space, eventually
from tests.kernel.machine import Machine, endpoint_id, running
from tests.kernel.samples import NS, PEER_MAC, network
from tests.kernel.test_datapath import ping

pytestmark = pytest.mark.kernel

NETWORK = NetworkId("shortnetwork")
FILTER = "tc filter show dev vx0 ingress"
MAC = Mac("02:42:0a:01:00:02")


@dataclass
class Lab:
    """Two machines with a container each."""

    a: Machine
    b: Machine
    here: Space
    there: Space

    def space(self, machine: Machine) -> Space:
        return machine.host.overlay(namespace_name(NETWORK))

    def over_the_bridge(self) -> int:
        """Frames that the bridge has given to the receiving container."""
        port = port_name(EndpointId(endpoint_id(NETWORK, "10.3.0.21")))
        (link,) = self.space(self.b).json(f"ip -j -s link show {port}")
        return int(link["stats64"]["tx"]["packets"])


@pytest.fixture
def lab(hosts: Callable[[], Host]) -> Iterator[Lab]:
    with running([hosts(), hosts()]) as (a, b):
        for machine in (a, b):
            machine.create(NETWORK, "10.3.0.0/24", 7003)
        if not a.reconciler.shortcuts:
            pytest.skip("this kernel has no shortcuts")
        found = Lab(a, b, a.attach(NETWORK, "10.3.0.11"), b.attach(NETWORK, "10.3.0.21"))
        assert eventually(lambda: _reaches(found.here, "10.3.0.21"))
        yield found


def _reaches(source: Space, target: str) -> bool:
    try:
        return ping(source, target)
    except TimeoutError:
        return False


def _received(container: Space) -> int:
    (device,) = container.json("ip -j -s link show eth0")
    return int(device["stats64"]["rx"]["packets"])


def test_frames_for_a_container_do_not_cross_the_bridge(lab: Lab) -> None:
    before, then = lab.over_the_bridge(), _received(lab.there)
    assert all(ping(lab.here, "10.3.0.21", size=1372) for _ in range(20))
    assert lab.over_the_bridge() - before < 5
    assert _received(lab.there) - then >= 20


def test_nobody_else_gets_what_is_sent_to_another_host(lab: Lab) -> None:
    """The bridge must know where the others are, though it does not see what they send."""
    bystander = lab.a.attach(NETWORK, "10.3.0.12")
    space = lab.space(lab.a)
    # As after five minutes: the bridge has forgotten what a multicast taught it, the program whom it saw.
    space.run("ip link set vx7003 type bridge_slave fdb_flush; tc filter del dev vx7003 ingress")
    assert eventually(lambda: "pyoverlay" in space.run("tc filter show dev vx7003 ingress"))
    before = _received(bystander)
    assert all(ping(lab.here, "10.3.0.21") for _ in range(20))
    assert _received(bystander) - before < 5
    rows = space.run("bridge fdb show br br7003 dynamic")
    assert "02:42:0a:03:00:15 dev vx7003 master br7003" in rows


def test_a_container_that_gives_itself_another_mac_is_reached_over_the_bridge(lab: Lab) -> None:
    lab.there.run("ip link set eth0 address 02:00:00:00:00:77")
    lab.here.run("ip neigh replace 10.3.0.21 lladdr 02:00:00:00:00:77 dev eth0")
    before = lab.over_the_bridge()
    assert ping(lab.here, "10.3.0.21")
    assert lab.over_the_bridge() > before


def test_who_takes_a_neighbours_mac_does_not_get_its_frames_from_other_hosts(lab: Lab) -> None:
    """The bridge would believe whoever spoke last."""
    thief = lab.b.attach(NETWORK, "10.3.0.22")
    thief.run("ip link set eth0 address 02:42:0a:03:00:15")
    assert _reaches(thief, "10.3.0.1")  # so the bridge takes it for that of 10.3.0.21
    assert all(ping(lab.here, "10.3.0.21") for _ in range(5))


def test_broadcast_and_the_gateways_take_the_bridge(lab: Lab) -> None:
    with (
        lab.here.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        lab.there.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("0.0.0.0", 5555))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"to all", ("10.3.0.255", 5555))
        assert receiver.recvfrom(100)[0] == b"to all"
    assert ping(lab.there, "10.3.0.1")


def test_two_containers_on_one_host_take_the_bridge(lab: Lab) -> None:
    third = lab.b.attach(NETWORK, "10.3.0.22")
    before = lab.over_the_bridge()
    assert eventually(lambda: _reaches(third, "10.3.0.21"))
    assert lab.over_the_bridge() > before


def test_a_shortcut_ends_with_its_container(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.b.attach(NETWORK, "10.3.0.22")
    lab.b.containers.pop(0).close()
    assert eventually(lambda: len(_macs(lab)) == 1)
    assert caplog.text.count("repaired") == 0


def _macs(lab: Lab) -> list[str]:
    kernel = lab.b.host.inside(lambda: NetlinkKernel(lab.b.host.directory))
    with closing(kernel):
        return [o.mac for o in kernel.read_place(namespace_name(NETWORK)).values() if isinstance(o, Shortcut)]


def _rows(space: Space) -> Rows:
    text = space.run(FILTER).split()
    return Rows.of(int(text[text.index("id") + 1]))


def test_a_row_to_a_device_that_is_gone_is_mended_and_one_too_many_removed(host: Host) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    with closing(_rows(host.overlay(NS))) as rows:
        ((mac, _),) = rows.dump()
        rows.put(mac, 4711)
        rows.put(PEER_MAC, 4711)
    ops = diff(want, host.kernel.read_place(NS))
    assert [type(op) for op in ops] == [Delete, Set]
    assert host.kernel.apply(ops) == {}
    assert host.kernel.read_place(NS) == want


def test_a_row_that_cannot_be_renewed_leads_nowhere_and_the_bridge_remains(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    with closing(_rows(host.overlay(NS))) as rows:
        rows.put(MAC, 4711)

    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(Rows, "put", full)
    failures = host.kernel.apply(diff(want, host.kernel.read_place(NS)))
    assert [failure.errno for failure in failures.values()] == [errno.ENOMEM]
    assert not [key for key in host.kernel.read_place(NS) if key.kind == Shortcut.kind]


def test_a_port_that_was_renamed_keeps_its_shortcut(host: Host) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    host.overlay(NS).run("ip link set p0 name stray")
    assert host.kernel.apply(diff(want, host.kernel.read_place(NS))) == {}
    assert host.kernel.read_place(NS) == want


def test_a_port_made_anew_has_a_new_shortcut(host: Host) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    host.overlay(NS).run("ip link del p0")
    have = host.kernel.read_place(NS)
    assert have[Key(Shortcut.kind, NS, "vx0", MAC)] == Shortcut(NS, "vx0", MAC, "")
    assert host.kernel.apply(diff(want, have)) == {}
    assert host.kernel.read_place(NS) == want


def test_many_rows_are_read_back(host: Host) -> None:
    want = network()
    macs = [Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}") for number in range(1000)]
    want |= {s.key: s for s in (Shortcut(NS, "vx0", mac, "p0") for mac in macs)}
    assert host.kernel.apply(diff(want, {})) == {}
    assert host.kernel.read_place(NS) == want
    few = network()
    assert host.kernel.apply(diff(few, host.kernel.read_place(NS))) == {}
    assert host.kernel.read_place(NS) == few


@pytest.mark.parametrize(
    "theirs", ["prio 5 u32 match u32 0 0 flowid 1:1", "prio 65000 u32 match u32 0 0 flowid 1:1"]
)
def test_somebody_elses_filter_stays(host: Host, theirs: str) -> None:
    want = network()
    before = {key: obj for key, obj in want.items() if key.kind != Shortcut.kind}
    host.kernel.apply(diff(before, {}))
    space = host.overlay(NS)
    space.run(f"tc qdisc add dev vx0 clsact; tc filter add dev vx0 ingress {theirs}")
    alone = space.run(FILTER)
    assert host.kernel.read_place(NS) == before
    assert host.kernel.apply(diff(want, before)) == {}
    assert host.kernel.read_place(NS) == want
    assert host.kernel.apply([Delete(Shortcut(NS, "vx0", Mac(""), "", sound=False))]) == {}
    assert space.run(FILTER) == alone


def test_somebody_elses_filter_in_the_place_of_ours_stays_and_the_bridge_does(host: Host) -> None:
    want = network()
    before = {key: obj for key, obj in want.items() if key.kind != Shortcut.kind}
    host.kernel.apply(diff(before, {}))
    space = host.overlay(NS)
    theirs = f"prio {0x7079} u32 match u32 0 0 flowid 1:1"
    space.run(f"tc qdisc add dev vx0 clsact; tc filter add dev vx0 ingress {theirs}")
    alone = space.run(FILTER)
    assert [key.kind for key in host.kernel.apply(diff(want, before))] == [Shortcut.kind]
    assert host.kernel.read_place(NS) == before
    assert space.run(FILTER) == alone


def test_a_new_process_takes_them_over(host: Host) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    before = host.overlay(NS).run(FILTER)
    again = host.inside(lambda: NetlinkKernel(host.directory))
    with closing(again):
        assert again.read_place(NS) == want
    assert host.overlay(NS).run(FILTER) == before


def test_who_may_not_call_bpf_any_more_removes_the_filter_and_all_else_works(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = network()
    host.kernel.apply(diff(want, {}))
    monkeypatch.setattr(bpf, "_NUMBER", {})
    unwanted = {key: obj for key, obj in want.items() if key.kind != Shortcut.kind}
    assert host.kernel.apply(diff(unwanted, host.kernel.read_place(NS))) == {}
    assert host.kernel.read_place(NS) == unwanted
    assert host.overlay(NS).run(FILTER) == ""
    assert [key.kind for key in host.kernel.apply(diff(want, unwanted))] == [Shortcut.kind]


def test_a_kernel_without_them_says_so_once_and_does_without(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert host.kernel.has_shortcuts()
    monkeypatch.setattr(bpf, "_NUMBER", {})
    caplog.set_level(logging.INFO)
    assert not host.kernel.has_shortcuts()
    assert caplog.text.count("no shortcuts past the bridge") == 1
