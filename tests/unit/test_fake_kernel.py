"""What the kernel in memory tells about frames; its rules are in tests/kernel/test_contract.py."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from driver.kernel import Kernel
from driver.kernel.kinds import FLOOD_MAC, FdbEntry, Vxlan
from driver.kernel.objects import Key
from driver.kernel.ops import Set
from driver.reconcile.plan import diff
from driver.wish.values import Mac
from tests.fakes.kernel import FakeKernel, present
from tests.kernel.samples import NS, PEER_MAC, network

OTHER = ip_address("192.0.2.2")


def test_it_is_a_kernel() -> None:
    kernel: Kernel = FakeKernel()
    assert kernel.namespaces() == []


def test_a_frame_goes_where_its_address_lives() -> None:
    kernel = present(*network().values())
    assert kernel.reaches(NS, "br0", Mac("02:42:0a:01:00:02")) == {"c0"}
    assert kernel.reaches(NS, "br0", PEER_MAC) == {OTHER}


def test_a_frame_to_all_goes_to_all_that_have_the_network() -> None:
    kernel = present(*network().values())
    third = ip_address("192.0.2.3")
    kernel.apply([Set(FdbEntry(NS, "vx0", FLOOD_MAC, third))])
    assert kernel.reaches(NS, "br0", FLOOD_MAC) == {"c0", OTHER, third}
    assert kernel.reaches(NS, "br0", Mac("02:99:00:00:00:01")) == {"c0", OTHER, third}


def test_questions_for_addresses_are_answered_at_home() -> None:
    kernel = present(*network().values())
    assert kernel.answers(NS, "br0", ip_address("10.1.0.9")) == PEER_MAC
    assert kernel.answers(NS, "br0", ip_address("10.1.0.1")) == "02:44:00:00:00:01"
    assert kernel.answers(NS, "br0", ip_address("10.1.0.77")) is None


def test_it_fails_when_asked_and_only_then() -> None:
    kernel = FakeKernel()
    kernel.fail_next(Vxlan.kind, errno.EPERM)
    failures = kernel.apply(diff(network(), {}))
    assert failures[Key(Vxlan.kind, NS, "vx0")].errno == errno.EPERM
    assert kernel.apply(diff(network(), kernel.read_place(NS))) == {}


def test_the_container_end_is_the_engines_once_taken() -> None:
    kernel = present(*network().values())
    assert kernel.take("c0") == "pyoverlay container"
    assert kernel.host_devices == {}
