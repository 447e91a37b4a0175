"""What every Kernel keeps: the one in memory and the real one, word for word the same tests."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest

from driver.kernel import Kernel
from driver.kernel.kinds import (
    FLOOD_MAC,
    Bridge,
    BridgeAddress,
    FdbEntry,
    Namespace,
    Neighbour,
    Port,
    Row,
    Shortcut,
    Vxlan,
)
from driver.kernel.objects import KernelObject, Key
from driver.kernel.ops import Delete, Set
from driver.reconcile.plan import diff
from driver.wish.values import Mac, Vni, mac_of
from tests.fakes.kernel import FakeKernel
from tests.kernel.hosts import Host
from tests.kernel.samples import NS, PEER_MAC, network
from tests.worlds import converge, walk

BRIDGE = Key(Bridge.kind, NS, "br0")
VXLAN = Key(Vxlan.kind, NS, "vx0")
PORT = Key(Port.kind, NS, "p0")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kernel]:
    if request.param == "fake":
        yield FakeKernel()
        return
    host = Host(tmp_path / "netns")
    yield host.kernel
    host.close()


def build(kernel: Kernel, want: dict[Key, KernelObject]) -> None:
    assert kernel.apply(diff(want, {})) == {}
    assert kernel.read_place(NS) == want


def test_what_was_set_is_read_back(kernel: Kernel) -> None:
    build(kernel, network())
    assert list(kernel.namespaces()) == [NS]


@pytest.mark.parametrize("local", ["192.0.2.1", "2001:db8::1", None, "::"])
def test_a_tunnel_has_either_family_or_no_address_at_all(kernel: Kernel, local: str | None) -> None:
    build(kernel, network(local=local))


def test_a_namespace_that_does_not_exist_is_empty(kernel: Kernel) -> None:
    assert kernel.read_place("pyoverlay-none") == {}
    assert list(kernel.namespaces()) == []


def test_taking_all_down_leaves_nothing(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    assert kernel.apply(diff({}, want)) == {}
    assert kernel.read_place(NS) == {}
    assert list(kernel.namespaces()) == []


def test_setting_twice_and_deleting_twice_is_no_error(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    assert kernel.apply([Set(obj, obj) for obj in sorted(want.values(), key=lambda o: o.key)]) == {}
    assert kernel.read_place(NS) == want
    for _ in range(2):
        deletes = [Delete(obj) for obj in sorted(want.values(), key=lambda o: o.key, reverse=True)]
        assert kernel.apply(deletes) == {}


def test_deleting_where_nothing_ever_was_is_no_error(kernel: Kernel) -> None:
    assert kernel.apply([Delete(obj) for obj in network().values()]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"mtu": 1400},
        {"vni": 1001},
        {"port": 4790},
        {"local": "192.0.2.3"},
        {"local": "2001:db8::1"},
        {"local": None},
    ],
    ids=str,
)
def test_every_value_can_be_changed(kernel: Kernel, change: dict[str, int]) -> None:
    build(kernel, network())
    want = network(**change)  # type: ignore[arg-type]
    assert converge(kernel, want) == want


def test_a_new_local_address_of_the_same_family_keeps_the_rows(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    vxlan = want[VXLAN]
    assert isinstance(vxlan, Vxlan)
    kernel.apply([Set(replace(vxlan, local=ip_address("192.0.2.3")), vxlan)])
    assert kernel.read_place(NS) == network(local="192.0.2.3")


@pytest.mark.parametrize(("local", "none"), [("192.0.2.1", None), ("2001:db8::1", "::")])
def test_a_tunnel_that_loses_its_address_or_gets_it_back_keeps_the_rows(
    kernel: Kernel, local: str, none: str | None
) -> None:
    bound, free = network(local=local), network(local=none) | _rows(network(local=local))
    build(kernel, bound)
    for want, have in ((free, bound), (bound, free)):
        kernel.apply([Set(want[VXLAN], have[VXLAN])])
        assert kernel.read_place(NS) == want


def _rows(found: dict[Key, KernelObject]) -> dict[Key, KernelObject]:
    return {key: obj for key, obj in found.items() if isinstance(obj, Row)}


def test_a_new_vni_loses_the_rows_until_the_next_round(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    vxlan = want[VXLAN]
    assert isinstance(vxlan, Vxlan)
    kernel.apply([Set(replace(vxlan, vni=Vni(7)), vxlan)])
    assert not [key for key in kernel.read_place(NS) if key.kind in (FdbEntry.kind, Neighbour.kind)]


def test_rows_are_replaced_and_replication_rows_added(kernel: Kernel) -> None:
    build(kernel, network())
    elsewhere = ip_address("192.0.2.9")
    ops = [
        Set(FdbEntry(NS, "vx0", PEER_MAC, elsewhere)),
        Set(FdbEntry(NS, "vx0", FLOOD_MAC, elsewhere)),
        Set(Neighbour(NS, "vx0", ip_address("10.1.0.9"), Mac("02:42:00:00:00:77"))),
    ]
    assert kernel.apply(ops) == {}
    got = kernel.read_place(NS)
    for op in ops:
        assert got[op.want.key] == op.want
    assert len([key for key in got if key.kind == FdbEntry.kind and FLOOD_MAC in key.rest]) == 2


def test_of_the_rows_one_may_read_some(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    others = {key: obj for key, obj in want.items() if not isinstance(obj, Row)}
    assert kernel.read_place(NS, []) == others
    moved = FdbEntry(NS, "vx0", PEER_MAC, ip_address("192.0.2.77"))
    asked: list[Row] = [
        moved,
        Neighbour(NS, "vx0", ip_address("fd00:1::9"), Mac("02:42:00:00:00:77")),
        FdbEntry(NS, "vx0", FLOOD_MAC, ip_address("192.0.2.2")),
        FdbEntry(NS, "vx0", FLOOD_MAC, ip_address("192.0.2.77")),
        FdbEntry(NS, "vx0", Mac("02:42:00:00:00:78"), ip_address("192.0.2.2")),
        Neighbour(NS, "vx0", ip_address("10.1.0.99"), PEER_MAC),
        Neighbour(NS, "vx77", ip_address("10.1.0.9"), PEER_MAC),
    ]
    there = {row.key: want[row.key] for row in asked if row.key in want}
    assert len(there) == 3
    assert kernel.read_place(NS, asked) == {**others, **there}
    assert kernel.apply([Set(moved)]) == {}
    assert kernel.read_place(NS, asked) == {**others, **there, moved.key: moved}
    assert kernel.read_place("pyoverlay-none", asked) == {}


def test_hundreds_of_rows_may_be_asked_for(kernel: Kernel) -> None:
    build(kernel, network())
    addresses = [ip_address("10.2.0.0") + n for n in range(1000)]
    rows: list[Row] = [Neighbour(NS, "vx0", address, mac_of(address)) for address in addresses]
    rows += [FdbEntry(NS, "vx0", mac_of(address), ip_address("192.0.2.2")) for address in addresses]
    assert kernel.apply([Set(row) for row in rows[::2]]) == {}
    found = {key: obj for key, obj in kernel.read_place(NS, rows).items() if isinstance(obj, Row)}
    assert found == {row.key: row for row in rows[::2]}


def test_one_replication_row_goes_alone(kernel: Kernel) -> None:
    build(kernel, network())
    rows = [FdbEntry(NS, "vx0", FLOOD_MAC, ip_address(f"192.0.2.{n}")) for n in range(2, 6)]
    kernel.apply([Set(row) for row in rows])
    assert kernel.apply([Delete(rows[1]), Delete(rows[1])]) == {}
    got = kernel.read_place(NS)
    assert [row.key in got for row in rows] == [True, False, True, True]


def test_without_its_parent_an_object_is_refused_and_the_others_are_not(kernel: Kernel) -> None:
    want = network()
    other = network(vni=2000, ns="pyoverlay-net2")
    failures = kernel.apply([*diff({k: o for k, o in want.items() if k != BRIDGE}, {}), *diff(other, {})])
    refused = {BridgeAddress.kind, Vxlan.kind, Port.kind, FdbEntry.kind, Neighbour.kind, Shortcut.kind}
    assert set(failures) == {key for key in want if key.kind in refused}
    assert all(failure.errno == errno.ENODEV for failure in failures.values())
    assert kernel.read_place(NS) == {Key(Namespace.kind, NS): Namespace(NS)}
    assert kernel.read_place("pyoverlay-net2") == other


def test_without_a_namespace_nothing_is_set_and_nothing_crashes(kernel: Kernel) -> None:
    want = network()
    del want[Key(Namespace.kind, NS)]
    assert set(kernel.apply(diff(want, {}))) == set(want)


def test_a_vni_is_used_once_for_a_port(kernel: Kernel) -> None:
    build(kernel, network())
    failures = kernel.apply(diff(network(ns="pyoverlay-net2"), {}))
    assert failures[Key(Vxlan.kind, "pyoverlay-net2", "vx0")].errno == errno.EEXIST
    assert kernel.apply(diff(network(ns="pyoverlay-net3", port=4790), {})).keys() <= {
        Key(Port.kind, "pyoverlay-net3", "p0")
    }


def test_vnis_can_change_hands(kernel: Kernel) -> None:
    first = network(vni=1) | network(vni=2, ns="pyoverlay-net2")
    second = network(vni=2) | network(vni=1, ns="pyoverlay-net2")
    for want in (first, second, first):
        wish = {key: _peer_of_its_own(obj) for key, obj in want.items()}
        assert converge(kernel, wish) == wish


def test_a_port_that_the_engine_has_is_not_made_anew(kernel: Kernel) -> None:
    build(kernel, network())
    port = network()[PORT]
    assert isinstance(port, Port)
    handed_over = replace(port, create=False)
    kernel.apply([Delete(port)])
    assert diff({PORT: handed_over}, {}) == []
    assert kernel.apply([Set(handed_over)])[PORT].errno == errno.ENODEV
    assert PORT not in kernel.read_place(NS)


def test_a_port_that_the_engine_has_can_still_be_mended(kernel: Kernel) -> None:
    build(kernel, network())
    port = network()[PORT]
    assert isinstance(port, Port)
    assert kernel.apply([Set(replace(port, create=False, alias="pyoverlay new"), port)]) == {}
    assert kernel.read_place(NS)[PORT] == replace(port, alias="pyoverlay new")


def test_ports_outlive_their_bridge(kernel: Kernel) -> None:
    want = network()
    build(kernel, want)
    bridge = want[BRIDGE]
    kernel.apply([Delete(bridge)])
    left = kernel.read_place(NS)
    assert BRIDGE not in left
    assert not [key for key in left if key.kind == BridgeAddress.kind]
    port = left[PORT]
    assert isinstance(port, Port)
    assert port.bridge == ""
    assert converge(kernel, want) == want


def test_a_name_has_fifteen_characters_at_most(kernel: Kernel) -> None:
    ops = [Set(Namespace(NS)), Set(Bridge(NS, "b" * 16, Mac("02:44:00:00:00:01"), 1500, "pyoverlay x"))]
    assert [key.kind for key in kernel.apply(ops)] == [Bridge.kind]


def test_an_outer_address_of_the_other_family_is_refused(kernel: Kernel) -> None:
    build(kernel, network())
    row = FdbEntry(NS, "vx0", PEER_MAC, ip_address("2001:db8::2"))
    assert kernel.apply([Set(row)])[row.key].errno == errno.EAFNOSUPPORT


def test_a_closed_kernel_leaves_its_objects(kernel: Kernel) -> None:
    build(kernel, network())
    kernel.close()


def test_many_worlds(kernel: Kernel) -> None:
    steps = 300 if isinstance(kernel, FakeKernel) else 60
    for number, want in enumerate(walk(seed=7, steps=steps)):
        assert converge(kernel, want) == want, f"step {number}"


def test_a_world_reached_in_any_order(kernel: Kernel) -> None:
    """Operations in disorder fail, and read, diff, apply still comes to the same end."""
    want = network()
    ops = diff(want, {})
    Random(3).shuffle(ops)
    kernel.apply(ops)
    assert converge(kernel, want) == want


def _peer_of_its_own(obj: KernelObject) -> KernelObject:
    return replace(obj, peer=f"c{obj.namespace[-1]}") if isinstance(obj, Port) else obj
