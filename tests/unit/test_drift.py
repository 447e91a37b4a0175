"""Drift, on the fake kernel: what is mended, told and counted, and who is withdrawn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from driver.cluster.memory import MemoryStore
from driver.cluster.publication import publication
from driver.kernel.kinds import Bridge, BridgeAddress, FdbEntry, Namespace, Neighbour, Port, Shortcut, Vxlan
from driver.kernel.names import namespace_name, port_name
from driver.reconcile import networks as engine
from driver.reconcile.drift import findings, sentence
from driver.reconcile.plan import diff
from driver.wish.model import Underlay
from driver.wish.values import EndpointId, Mac, NetworkId
from tests.kernel.samples import NS, PEER_MAC, network
from tests.unit.test_overlay import EP, EP2, NET, Node, _soon

PLACE = namespace_name(NetworkId(NET))


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(1, MemoryStore())
    made.create()
    yield made
    made.end()


def vxlan(node: Node) -> Vxlan:
    return next(o for o in node.have().values() if isinstance(o, Vxlan))


def bridge(node: Node) -> Bridge:
    return next(o for o in node.have().values() if isinstance(o, Bridge))


def attach(node: Node, endpoint: str, address: str) -> None:
    """Attach, and let the engine come to rest: from here on the wish is the same."""
    node.attach(endpoint, address)
    at_rest(node)


def at_rest(node: Node) -> None:
    _, revision = node.wish.snapshot()
    node.reconciler.wait_applied(NetworkId(NET), revision, 30)


def port(node: Node, endpoint: str) -> Port:
    name = port_name(EndpointId(endpoint))
    return next(o for o in node.have().values() if isinstance(o, Port) and o.name == name)


def test_what_was_changed_is_right_again_told_and_counted(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    attach(node, EP, "10.62.0.4")
    right = vxlan(node)
    node.kernel.spoil(replace(right, mtu=1400))
    assert _soon(lambda: vxlan(node) == right)
    assert _soon(lambda: node.reconciler.repairs == {Vxlan.kind: 1})
    assert _soon(lambda: f"network {NET}: repaired: {right.name}: mtu was 1400" in caplog.text)


def test_a_whole_namespace_is_right_again_but_for_its_containers(node: Node) -> None:
    attach(node, EP, "10.62.0.4")
    before = node.have()
    lost = {key for key in before if key.kind in (Port.kind, Shortcut.kind)}
    node.kernel.lose(Namespace(PLACE).key)
    assert _soon(lambda: node.have().keys() == before.keys() - lost)
    assert _soon(lambda: node.reconciler.repairs == {Namespace.kind: 1})


def test_a_shortcut_that_is_gone_or_leads_elsewhere_is_right_again_told_and_counted(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    attach(node, EP, "10.62.0.4")
    before = node.have()
    (right,) = (obj for obj in before.values() if isinstance(obj, Shortcut))
    node.kernel.lose(right.key)
    assert _soon(lambda: node.have() == before)
    assert _soon(lambda: node.reconciler.repairs == {Shortcut.kind: 1})
    node.kernel.spoil(replace(right, port="eth7"))
    assert _soon(lambda: node.reconciler.repairs == {Shortcut.kind: 2})
    assert node.have() == before
    name = f"shortcut to {right.mac} from {right.device}"
    assert _soon(lambda: caplog.text.count(f"repaired: {name}") == 2)
    assert f"repaired: {name} was gone" in caplog.text
    assert f"repaired: {name}: port was eth7" in caplog.text


def test_what_the_wish_changes_is_no_drift(node: Node) -> None:
    attach(node, EP, "10.62.0.4")
    attach(node, EP2, "10.62.0.5")
    node.detach(EP2)
    node.kernel.move_underlay(ip_address("192.0.2.1"), Underlay("eth0", 1400))
    assert _soon(lambda: bridge(node).mtu == 1350)
    assert node.reconciler.repairs == {}


@pytest.mark.parametrize("others", [0, 20], ids=["all is looked at", "a part is looked at"])
def test_what_a_hand_does_while_the_wish_changes_is_told_and_counted(
    node: Node, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    """Not so what the new wish asks for."""
    attach(node, EP, "10.62.0.4")
    attach(node, EP2, "10.62.0.5")
    other = Node(2, node.cluster)
    try:
        other.create()
        for number in range(others):
            announce(other, f"10.62.0.{100 + number}")
        assert _soon(lambda: len(node.rows()) == others)
        right = vxlan(node)
        with node.kernel.holding():
            node.kernel.spoil(replace(right, mtu=1400))
            node.detach(EP2)
            announce(other, "10.62.0.77")
            assert _soon(lambda: len(node.wish.state.peers.entries[NetworkId(NET)]) == others + 1)
        assert _soon(lambda: len(node.rows()) == others + 1)
        assert vxlan(node) == right
        assert _soon(lambda: node.reconciler.repairs == {Vxlan.kind: 1})
        assert _soon(lambda: caplog.text.count("repaired") == 1)
    finally:
        other.end()


def announce(node: Node, address: str) -> None:
    endpoint = f"{int(ip_address(address)):08x}" * 8
    node.overlay.create_endpoint(NET, endpoint, [ip_interface(f"{address}/24")], None, {})


def test_a_join_of_an_endpoint_whose_pair_has_gone_is_no_drift(node: Node) -> None:
    """The engine was killed, and its containers with it; it says all of it again."""
    attach(node, EP, "10.62.0.4")
    with ThreadPoolExecutor(1) as pool, node.kernel.holding():
        node.kernel.lose(port(node, EP).key)
        node.overlay.create_endpoint(NET, EP, [ip_interface("10.62.0.4/24")], None, {})
        join = pool.submit(node.overlay.join, NET, EP, "")
        assert _soon(lambda: EndpointId(EP) in node.wish.state.joining)
    join.result(30)
    assert port(node, EP).create
    assert node.reconciler.repairs == {}


def test_a_fight_is_held_at_one_round_a_second(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    attach(node, EP, "10.62.0.4")
    right = vxlan(node)
    began = time.monotonic()

    def fight() -> bool:
        node.kernel.spoil(replace(right, mtu=1400))
        return node.reconciler.repairs[Vxlan.kind] >= 2

    assert _soon(fight)
    assert time.monotonic() - began >= 1
    assert _soon(lambda: vxlan(node) == right)
    assert _soon(lambda: caplog.text.count("repaired") == node.reconciler.repairs[Vxlan.kind])


def test_a_fight_over_one_network_does_not_slow_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_LOOK_INTERVAL", 3600)
    node.overlay.create_network(
        "othernetwork", {}, node.wish.state.networks[NetworkId(NET)].segments[0].subnets, internal=False
    )
    attach(node, EP, "10.62.0.4")
    node.attach(EP2, "10.62.0.5", "othernetwork")
    right = vxlan(node)
    node.kernel.spoil(replace(right, mtu=1400))
    assert _soon(lambda: node.reconciler.repairs == {Vxlan.kind: 1})
    node.kernel.spoil(replace(right, mtu=1400))
    other = next(o for o in node.have("othernetwork").values() if isinstance(o, Vxlan))
    node.kernel.lose(other.key)
    assert _soon(lambda: other.key in node.kernel.all_objects())
    assert vxlan(node) != right


def test_an_outer_address_that_is_away_for_a_while_tears_nothing_down(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    vtep = ip_address("192.0.2.1")
    attach(node, EP, "10.62.0.4")
    before = node.have()
    node.kernel.move_underlay(vtep, None)
    assert _soon(lambda: "is on no device of this host at the moment" in caplog.text)
    attach(node, EP2, "10.62.0.5")
    assert before.items() <= node.have().items()
    node.kernel.move_underlay(vtep, Underlay("bond0", 9000))
    assert _soon(lambda: bridge(node).mtu == 8950)


class TestVanishedPorts:
    @pytest.fixture(autouse=True)
    def _hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "_WITHDRAW_AFTER", 0.3)

    def announced(self, node: Node) -> set[str]:
        return {record.endpoint for record in publication(node.wish.state).endpoints}

    def test_the_endpoint_is_withdrawn_after_a_while_and_told_once(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        attach(node, EP, "10.62.0.4")
        attach(node, EP2, "10.62.0.5")
        began = time.monotonic()
        node.kernel.lose(port(node, EP).key)
        assert _soon(lambda: self.announced(node) == {EP2})
        assert time.monotonic() - began >= 0.3
        time.sleep(0.4)
        assert caplog.text.count("has lost its container") == 1
        assert node.reconciler.repairs == {}
        assert "repaired" not in caplog.text

    def test_its_shortcut_goes_at_once(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "_WITHDRAW_AFTER", 60)
        attach(node, EP, "10.62.0.4")
        attach(node, EP2, "10.62.0.5")
        node.kernel.lose(port(node, EP).key)
        assert _soon(lambda: node.shortcuts() == {Mac("02:42:0a:3e:00:05"): port(node, EP2).name})
        assert self.announced(node) == {EP, EP2}

    def test_a_leave_comes_first(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(engine, "_WITHDRAW_AFTER", 60)
        attach(node, EP, "10.62.0.4")
        node.kernel.lose(port(node, EP).key)
        assert _soon(lambda: node.shortcuts() == {}), "seen to be gone"
        monkeypatch.setattr(engine, "_WITHDRAW_AFTER", 0)
        node.overlay.leave(NET, EP)
        at_rest(node)
        assert "has lost its container" not in caplog.text
        node.overlay.delete_endpoint(NET, EP)

    def test_one_that_is_being_joined_is_not_withdrawn(self, node: Node) -> None:
        attach(node, EP, "10.62.0.4")
        node.wish.change(lambda s: replace(s, joining={EndpointId(EP): "a Join"}))
        lost = port(node, EP)
        node.kernel.lose(lost.key)
        assert _soon(lambda: lost.key in node.have()), "a Join is under way, so it is made anew"
        time.sleep(0.5)
        assert self.announced(node) == {EP}
        assert port(node, EP).create

    def test_the_last_one_takes_the_network_with_it_and_can_join_again(self, node: Node) -> None:
        attach(node, EP, "10.62.0.4")
        node.kernel.lose(port(node, EP).key)
        assert _soon(lambda: list(node.kernel.namespaces()) == [])
        node.overlay.join(NET, EP, "")
        assert self.announced(node) == {EP}
        assert port(node, EP).peer in node.kernel.host_devices

    def test_after_a_reboot_all_are_gone_and_a_new_one_can_come(self, node: Node) -> None:
        attach(node, EP, "10.62.0.4")
        node.end()
        node.kernel = type(node.kernel)()
        node.kernel.underlays = {ip_address("192.0.2.1"): Underlay("eth0", 1500)}
        node.begin()
        assert self.announced(node) == set()
        assert list(node.kernel.namespaces()) == []
        assert not node.overlay.in_use(
            node.wish.state.networks[NetworkId(NET)].segments[0].subnets[0].prefix, ip_address("10.62.0.4")
        )
        node.attach(EP2, "10.62.0.4")
        assert self.announced(node) == {EP2}
        node.overlay.leave(NET, EP)
        node.overlay.delete_endpoint(NET, EP)
        assert port(node, EP2).key in node.have()

    def test_what_ended_while_the_plugin_was_away_is_never_announced_again(self, node: Node) -> None:
        attach(node, EP, "10.62.0.4")
        attach(node, EP2, "10.62.0.5")
        node.end()
        node.kernel.lose(port(node, EP).key)
        node.begin()
        assert self.announced(node) == {EP2}

    def test_an_address_of_one_that_is_gone_may_be_anothers(self, node: Node) -> None:
        other = Node(2, node.cluster)
        other.create()
        try:
            attach(node, EP, "10.62.0.4")
            attach(node, EP2, "10.62.0.5")
            node.kernel.lose(port(node, EP).key)
            assert _soon(lambda: self.announced(node) == {EP2})
            other.attach("ab" + EP[2:], "10.62.0.4")
            assert _soon(lambda: node.rows() == {"10.62.0.4": "192.0.2.2"})
        finally:
            other.end()


class TestFindings:
    """How a person is told."""

    def test_what_went_with_its_parent_is_not_told(self) -> None:
        want = network()
        ports_alone = {
            key: replace(obj, bridge="") if isinstance(obj, Port | Vxlan) else obj
            for key, obj in want.items()
            if key.kind not in (Bridge.kind, BridgeAddress.kind)
        }
        assert sentence(findings(diff(want, ports_alone))) == "br0 was gone"
        assert sentence(findings(diff(want, {}))) == "namespace pyoverlay-net1 was gone"

    def test_the_shortcut_to_a_port_that_was_renamed_or_made_anew_is_not_told(self) -> None:
        want = network()
        have = dict(want)
        for key, obj in want.items():
            if isinstance(obj, Port):
                del have[key]
                stray = replace(obj, name="stray")
                have[stray.key] = stray
            if isinstance(obj, Shortcut):
                have[key] = replace(obj, port="stray")
        assert sentence(findings(diff(want, have))) == "p0: name was stray"
        del have[stray.key]
        assert sentence(findings(diff(want, have))) == "p0 was gone"

    def test_each_kind_is_named(self) -> None:
        want = network()
        have = dict(want)
        for key, obj in want.items():
            if key.kind in (BridgeAddress.kind, Neighbour.kind, FdbEntry.kind) and ":1::" not in str(obj):
                del have[key]
            if isinstance(obj, Port):
                have[key] = replace(obj, bridge="", sound=False)
            if isinstance(obj, Shortcut):
                del have[key]
        stranger = FdbEntry(NS, "vx0", Mac("02:00:00:00:00:01"), ip_address("192.0.2.2"))
        found = findings(diff(want, {**have, stranger.key: stranger}))
        assert {finding.text for finding in found} == {
            "FDB 02:00:00:00:00:01 on vx0 was not ours",
            "address 10.1.0.1/24 of br0 was gone",
            "p0: bridge was none, was down or had a foreign setting",
            "replication to 192.0.2.2 on vx0 was gone",
            f"FDB {PEER_MAC} on vx0 was gone",
            "neighbour 10.1.0.9 on vx0 was gone",
            "shortcut to 02:42:0a:01:00:02 from vx0 was gone",
        }
        assert sentence(found).endswith("; and 2 more")
