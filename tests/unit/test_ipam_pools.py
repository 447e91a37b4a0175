"""Pool ids as text, and which addresses of a pool an endpoint may have."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.pools import Pool, PoolId, Space, overlap

PREFIXES = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda t: ip_network((t[0], t[1]), strict=False)
    ),
    st.tuples(st.integers(2**32, 2**128 - 1), st.integers(0, 128)).map(
        lambda t: ip_network((t[0], t[1]), strict=False)
    ),
)


@settings(deadline=None)
@given(st.sampled_from(Space), PREFIXES, st.none() | PREFIXES)
def test_a_pool_id_comes_back_from_its_text(space: Space, prefix: object, sub_pool: object) -> None:
    pool_id = PoolId(space, prefix, sub_pool)  # type: ignore[arg-type]
    assert PoolId.parse(str(pool_id)) == pool_id


def test_a_pool_id_is_readable() -> None:
    pool_id = PoolId(Space.LOCAL, ip_network("10.1.0.0/16"), ip_network("10.1.2.0/24"))
    assert str(pool_id) == "pyoverlay-local/10.1.0.0/16/10.1.2.0/24"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.1.0.0/16",
        "LocalDefault/10.1.0.0/16",
        "pyoverlay-local/10.1.0.0",
        "pyoverlay-local/10.1.0.1/16",
        "pyoverlay-local/10.1.0.0/255.255.0.0",
        "pyoverlay-local/10.1.0.0/16/",
        "pyoverlay-local/10.1.0.0/16/x/y",
        "pyoverlay-local/FD00::/64",
    ],
)
def test_any_other_text_is_no_pool_id(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PoolId.parse(text)


@pytest.mark.parametrize(
    ("prefix", "first", "last"),
    [
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
        ("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
        ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::/126", "fd00::1", "fd00::3"),
        ("fd00::/127", "fd00::", "fd00::1"),
        ("fd00::5/128", "fd00::5", "fd00::5"),
    ],
)
def test_usable_addresses(prefix: str, first: str, last: str) -> None:
    pool = Pool(ip_network(prefix))
    assert tuple(map(pool.address, pool.usable)) == (ip_address(first), ip_address(last))


def test_a_sub_pool_has_only_the_pools_own_edges_cut_off() -> None:
    pool = Pool(ip_network("10.1.0.0/16"))
    assert pool.range_of(ip_network("10.1.2.0/24")) == (0x200, 0x2FF)
    assert pool.range_of(ip_network("10.1.0.0/24")) == (1, 0xFF)
    assert pool.range_of(ip_network("10.1.255.0/24")) == (0xFF00, 0xFFFE)


@settings(deadline=None)
@given(PREFIXES, PREFIXES)
def test_overlap_agrees_with_the_standard_library(one: object, other: object) -> None:
    assert overlap(one, other) == one.overlaps(other)  # type: ignore[arg-type,attr-defined]
