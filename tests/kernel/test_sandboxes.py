"""What all Sandboxes keep: the ones in memory and the real ones, word for word the same tests."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from random import Random

import pytest

from driver.kernel import Sandboxes, netns
from driver.kernel.balancers import nft
from driver.kernel.balancers.sandboxes import NetlinkSandboxes
from driver.kernel.kinds import Balancer, Services
from driver.kernel.netlink.socket import Refused
from driver.kernel.objects import Key, index
from driver.kernel.ops import Delete, Set
from driver.reconcile.plan import diff
from tests.fakes.sandboxes import FakeSandboxes

ONE, TWO = "pyoverlay-one", "pyoverlay-two"


class World:
    """Two namespaces, and how to make and to end one."""

    def __init__(self, kernel: Sandboxes, names: list[str], spoil: Callable[[Balancer], None]) -> None:
        self.kernel = kernel
        self.names = names
        self.spoil = spoil


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        fake = FakeSandboxes("a", "b")
        yield World(fake, ["a", "b"], fake.spoil)
        return
    descriptors = [netns.create(), netns.create()]
    names = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in descriptors]
    kernel, other = NetlinkSandboxes(), NetlinkSandboxes()

    def spoil(obj: Balancer) -> None:
        other.apply(diff(index([obj]), other.read_sandbox(obj.sandbox)))

    yield World(kernel, names, spoil)
    for made in (kernel, other):
        made.close()
    for descriptor in descriptors:
        os.close(descriptor)


def services(**given: list[int]) -> Services:
    return {
        ip_address(f"10.9.0.{vip[1:]}"): tuple(ip_address(f"10.9.1.{b}") for b in backends)
        for vip, backends in given.items()
    }


def test_what_was_set_is_read_back(world: World) -> None:
    sandbox = world.names[0]
    want = index(
        [Balancer(sandbox, ONE, services(v1=[1, 2, 3], v2=[])), Balancer(sandbox, TWO, services(v1=[1]))]
    )
    assert world.kernel.read_sandbox(sandbox) == {}
    assert world.kernel.apply(diff(want, {})) == {}
    assert world.kernel.read_sandbox(sandbox) == want
    assert world.kernel.read_sandbox(world.names[1]) == {}


def test_where_there_is_no_namespace_nothing_can_be_set_and_all_can_be_deleted(world: World) -> None:
    one = Balancer("/nowhere", ONE, services(v1=[1]))
    assert world.kernel.read_sandbox("/nowhere") == {}
    assert world.kernel.apply([Set(one)])[one.key].errno == errno.ENOENT
    assert world.kernel.apply([Delete(one)]) == {}


def test_who_was_not_quick_enough_has_to_look_again(world: World) -> None:
    sandbox = world.names[0]
    want = Balancer(sandbox, ONE, services(v1=[1]))
    have = world.kernel.read_sandbox(sandbox)
    world.spoil(Balancer(sandbox, TWO, services(v1=[2])))
    assert world.kernel.apply(diff(index([want]), have))[want.key].errno == errno.ERESTART
    have = world.kernel.read_sandbox(sandbox)
    assert world.kernel.apply(diff(index([want]), have)) == {}
    assert world.kernel.read_sandbox(sandbox) == index([want])


def test_one_failure_does_not_stop_the_others(world: World) -> None:
    wanted = [Balancer(name, ONE, services(v1=[1])) for name in ("/nowhere", *world.names)]
    for one in wanted:
        world.kernel.read_sandbox(one.sandbox)
    failures = world.kernel.apply([Set(one) for one in wanted])
    assert list(failures) == [wanted[0].key]
    assert world.kernel.read_sandbox(world.names[1]) == index([wanted[2]])


def test_a_walk_through_many_tables(world: World) -> None:
    random = Random(5)
    for step in range(120):
        for sandbox in world.names:
            want: dict[Key, Balancer] = index(  # type: ignore[assignment]
                [
                    Balancer(sandbox, name, _drawn(random), turn=random.randrange(7))
                    for name in random.sample([ONE, TWO], random.randint(0, 2))
                ]
            )
            assert world.kernel.apply(diff(want, world.kernel.read_sandbox(sandbox))) == {}, f"step {step}"
            assert world.kernel.read_sandbox(sandbox) == want, f"step {step}"


def test_a_newcomer_reads_what_another_has_made(world: World) -> None:
    sandbox = world.names[0]
    want = Balancer(sandbox, ONE, {k: v for i in range(40) for k, v in _drawn(Random(i)).items()}, turn=3)
    world.kernel.read_sandbox(sandbox)
    assert world.kernel.apply([Set(want)]) == {}
    if isinstance(world.kernel, NetlinkSandboxes):
        other = NetlinkSandboxes()
        assert other.read_sandbox(sandbox) == index([want])
        other.close()


def test_many_services_and_many_backends(world: World) -> None:
    sandbox = world.names[0]
    many = {
        ip_address("10.8.0.0") + n: tuple(ip_address("10.9.0.0") + b for b in range(n % 7))
        for n in range(3000)
    }
    many[ip_address("10.7.0.1")] = tuple(ip_address("10.9.0.0") + b for b in range(3000))
    want = Balancer(sandbox, ONE, many)
    world.kernel.read_sandbox(sandbox)
    assert world.kernel.apply([Set(want)]) == {}
    assert world.kernel.read_sandbox(sandbox) == index([want])
    assert world.kernel.apply(diff({}, world.kernel.read_sandbox(sandbox))) == {}
    assert world.kernel.read_sandbox(sandbox) == {}


def test_thousands_of_backends_that_come_and_go_take_no_memory() -> None:
    """Every container begins with another one, and so has requests of its own."""
    vip, backends = ip_address("10.7.0.1"), tuple(ip_address("10.9.0.0") + b for b in range(3000))
    tracemalloc.start()
    for turn in range(100):
        difference = nft.Difference.between({vip: backends}, {vip: backends[: 3000 - turn]})
        nft.change(ONE, difference, turn)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 5_000_000


@pytest.mark.kernel
def test_a_kernel_without_the_modules_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise Refused(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(nft, "commit", refuse)
    kernel = NetlinkSandboxes()
    want = Balancer("/proc/self/ns/net", ONE, services(v1=[1]))
    kernel.read_sandbox(want.sandbox)
    failure = kernel.apply([Set(want)])[want.key]
    kernel.close()
    assert failure.errno == errno.EOPNOTSUPP, "not as if the namespace were to come"
    assert "modprobe -a nft_chain_nat nft_ct nft_nat nft_numgen" in str(failure)


def _drawn(random: Random) -> Services:
    return {
        ip_address(f"10.9.0.{vip}"): tuple(
            sorted(ip_address(f"10.9.1.{b}") for b in random.sample(range(1, 20), random.randint(0, 6)))
        )
        for vip in random.sample(range(1, 12), random.randint(0, 8))
    }
