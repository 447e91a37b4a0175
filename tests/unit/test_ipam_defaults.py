"""Default pools: distinct, clear of the host's routes, of the right size."""

from ipaddress import ip_network

import pytest

from ipam.allocator import PoolRequest, request_pool
from ipam.defaults import default_ranges
from ipam.errors import BadRequest, Exhausted
from ipam.pools import IpamState, Network, Space, overlap

EMPTY = IpamState(ula_id=0x123456789A)


def take(state: IpamState, request: PoolRequest, *routes: str) -> tuple[IpamState, Network]:
    state, pool_id = request_pool(state, request, [ip_network(r) for r in routes])
    return state, pool_id.prefix


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("space", Space)
def test_every_dynamic_call_gives_another_pool(space: Space, version: int) -> None:
    """Else the engine asks for ever while it holds the first (it refuses what meets its routes)."""
    state, seen = EMPTY, set()
    for _ in range(50):
        state, prefix = take(state, PoolRequest(space, version))
        seen.add(prefix)
    assert len(seen) == 50
    assert not any(overlap(a, b) for a in seen for b in seen if a != b)


def test_the_two_spaces_never_choose_the_same() -> None:
    """The leader cannot see what other hosts chose for their own networks."""
    for version in (4, 6):
        for local in default_ranges(Space.LOCAL, version, 7):
            assert not any(overlap(local, g) for g in default_ranges(Space.GLOBAL, version, 7))


def test_the_ranges_keep_clear_of_dockers_own() -> None:
    docker = [ip_network("172.16.0.0/12"), ip_network("192.168.0.0/17"), ip_network("10.0.0.0/10")]
    for space in Space:
        assert not any(overlap(r, d) for r in default_ranges(space, 4, 0) for d in docker)


def test_host_routes_are_avoided_whatever_their_size() -> None:
    request = PoolRequest(Space.LOCAL)
    _, prefix = take(EMPTY, request, "10.64.0.0/24", "10.64.1.128/25", "10.64.2.7/32")
    assert prefix == ip_network("10.64.3.0/24")


def test_a_default_route_and_its_halves_block_nothing() -> None:
    _, prefix = take(EMPTY, PoolRequest(Space.LOCAL), "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1")
    assert prefix == ip_network("10.64.0.0/24")


def test_a_host_that_routes_all_of_ten_gets_the_second_range() -> None:
    _, prefix = take(EMPTY, PoolRequest(Space.GLOBAL), "10.0.0.0/8")
    assert prefix == ip_network("192.168.192.0/24")


def test_named_pools_of_either_space_are_avoided() -> None:
    state, _ = take(EMPTY, PoolRequest(Space.GLOBAL, prefix=ip_network("10.64.0.0/23")))
    _, prefix = take(state, PoolRequest(Space.LOCAL))
    assert prefix == ip_network("10.64.2.0/24")


def test_sizes_may_be_mixed() -> None:
    state, small = take(EMPTY, PoolRequest(Space.LOCAL, length=28))
    state, middle = take(state, PoolRequest(Space.LOCAL))
    state, large = take(state, PoolRequest(Space.LOCAL, length=16))
    state, again = take(state, PoolRequest(Space.LOCAL, length=28))
    assert list(map(str, (small, middle, large, again))) == [
        "10.64.0.0/28",
        "10.64.1.0/24",
        "10.65.0.0/16",
        "10.64.0.16/28",
    ]


def test_a_freed_pool_can_be_chosen_again() -> None:
    state, prefix = take(EMPTY, PoolRequest(Space.LOCAL))
    _, again = take(state.without_pool((Space.LOCAL, prefix)), PoolRequest(Space.LOCAL))
    assert again == prefix


def test_ipv6_pools_derive_from_the_global_id() -> None:
    state, first = take(EMPTY, PoolRequest(Space.LOCAL, 6))
    state, second = take(state, PoolRequest(Space.LOCAL, 6))
    _, swarm = take(state, PoolRequest(Space.GLOBAL, 6))
    assert (first, second) == (ip_network("fd12:3456:789a::/64"), ip_network("fd12:3456:789a:1::/64"))
    assert swarm == ip_network("fd12:3456:789a:8000::/64")


@pytest.mark.parametrize(("version", "length"), [(4, 0), (4, 11), (4, 32), (6, 48), (6, 128)])
def test_a_size_that_can_never_be_served_is_refused(version: int, length: int) -> None:
    with pytest.raises(BadRequest, match=rf"IPv{version} /{length}.*too (large|small).*--subnet"):
        take(EMPTY, PoolRequest(Space.LOCAL, version, length=length))


def test_exhaustion_says_how_much_is_taken_and_the_remedy() -> None:
    with pytest.raises(Exhausted, match=r"10\.64\.0\.0/12.*0 pools and 2 host routes.*--subnet"):
        take(EMPTY, PoolRequest(Space.LOCAL), "10.0.0.0/8", "192.168.0.0/16")
