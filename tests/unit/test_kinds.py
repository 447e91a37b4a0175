"""What holds for every kind of kernel object, those to come included."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from driver.kernel.kinds import KINDS, SHARED, Balancer, FdbEntry, Neighbour, Port, Shortcut, Vxlan
from driver.kernel.kinds.base import SpaceObject
from driver.kernel.objects import KernelObject, Key, Kind
from driver.kernel.ops import Delete, Set
from driver.kernel.refusal import refusal
from driver.reconcile.drift import findings
from driver.reconcile.plan import diff
from driver.wish.values import HOST
from tests.kernel.samples import NS, network
from tests.kinds import Marker

SAMPLES = list(network().values())
BALANCER = Balancer("/run/docker/netns/1", NS, {})
ALL: list[KernelObject] = [*SAMPLES, BALANCER, Marker("pyomark0", 1500)]


def changed(obj: KernelObject, **values: object) -> Any:
    return obj._replace(**values) if isinstance(obj, FdbEntry | Neighbour) else replace(obj, **values)  # type: ignore[arg-type, type-var]


def test_the_samples_have_every_kind() -> None:
    assert {type(obj) for obj in SAMPLES} == set(KINDS)


def test_ranks_are_unique_and_in_order() -> None:
    kinds: list[type[KernelObject]] = [*KINDS, Balancer]
    ranks = [int(kind.kind) for kind in kinds]
    assert ranks == sorted(set(ranks))
    assert {kind.word for kind in SHARED} == {"namespace", "bridge", "address", "VXLAN device"}


@pytest.mark.parametrize("obj", ALL, ids=lambda obj: str(obj.key.kind))
def test_an_object_comes_after_its_parent_and_what_it_needs(obj: KernelObject) -> None:
    above = [key for key in (obj.parent, *obj.needs) if key]
    assert all(key < obj.key for key in above)
    assert all(key in {other.key for other in ALL} for key in above), "they are objects of ours"


@pytest.mark.parametrize("obj", ALL, ids=lambda obj: str(obj.key.kind))
def test_an_object_that_is_not_sound_is_not_what_anybody_wants(obj: KernelObject) -> None:
    spoilt = changed(obj, sound=False)
    assert spoilt != obj
    (*_, op) = diff({obj.key: obj}, {spoilt.key: spoilt})
    assert op == Set(obj, spoilt if spoilt.key == obj.key else None)
    found = findings(diff({obj.key: obj}, {spoilt.key: spoilt}))
    assert found, "and it is told"
    assert all(obj.key.name in finding.text or obj.key.place in finding.text for finding in found)


@pytest.mark.parametrize("obj", ALL, ids=lambda obj: str(obj.key.kind))
def test_words_for_it_name_it(obj: KernelObject) -> None:
    name = obj.key.name or obj.key.place
    assert name in obj.label
    assert name in obj.description
    assert obj.description in str(refusal(obj, OSError(errno.EPERM, "Operation not permitted")))
    assert "CAP_NET_ADMIN" in str(refusal(obj, OSError(errno.EPERM, "Operation not permitted")))


@pytest.mark.parametrize("kind", [*KINDS, Balancer], ids=lambda kind: kind.kind.word)
def test_a_kernel_without_it_is_told_by_the_module(kind: type[KernelObject]) -> None:
    obj = next(obj for obj in ALL if isinstance(obj, kind))
    said = str(refusal(obj, OSError(errno.EOPNOTSUPP, "Operation not supported")))
    assert (f"modprobe -a {kind.module}" in said) == bool(kind.module)


def test_keys_of_the_host_and_of_networks_sort_together() -> None:
    keys = sorted([Key(Port.kind, NS, "p0"), Key(Port.kind, HOST, "p0"), Key(Vxlan.kind, HOST, "vx0")])
    assert [key.kind for key in keys] == [Vxlan.kind, Port.kind, Port.kind]


def test_a_kind_is_its_rank_and_shows_its_word() -> None:
    assert str(Kind(7, "thing")) == repr(Kind(7, "thing")) == "thing"
    assert Kind(7, "thing") < Kind(8, "child")


def test_a_filter_that_nobody_can_read_is_deleted_and_its_shortcuts_are_made_anew() -> None:
    want = network()
    shortcut = next(obj for obj in want.values() if isinstance(obj, Shortcut))
    unread = Shortcut(NS, "vx0", shortcut.mac, "", sound=False)
    have = {**{k: o for k, o in want.items() if k != shortcut.key}, unread.key: unread}
    assert diff(want, have) == [Delete(unread), Set(shortcut, None)]


def test_what_a_kind_leaves_out_is_told_at_once() -> None:
    class Bare(SpaceObject):
        kind = Kind(99, "bare")

    for call in (lambda: Bare().key, lambda: Bare().label, lambda: Bare().delete(None)):  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError):
            call()
