"""Network and endpoint options: what is understood, what is refused, and with which words."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.wish.errors import BadRequest, Conflict
from driver.wish.model import Subnet
from driver.wish.options import (
    REFUSED,
    VNI_BASE,
    check_endpoint_options,
    check_subnets,
    choose_vnis,
    parse_network_options,
    segments_of,
)
from driver.wish.values import MAX_VNI, NetworkId, Vni

NET = NetworkId("u4m9hzge31tsafr3nembuizn6")


def subnet(prefix: str) -> Subnet:
    network = ip_network(prefix)
    return Subnet(network, network[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vni": "abc"}, ["vni", "abc", "1 to 16777215"]),
        ({"vni": "0"}, ["vni", "0"]),
        ({"vni": "16777216"}, ["vni", "16777216", "16777215"]),
        ({"vni": "7,7"}, ["vni", "of its own"]),
        ({"vni": "٣"}, ["vni"]),
        ({"vxlan_port": "0"}, ["vxlan_port", "65535"]),
        ({"vxlan_port": "70000"}, ["vxlan_port", "70000"]),
        ({"vxlan_port": ""}, ["vxlan_port"]),
        ({"mtu": "100"}, ["mtu", "100", "576"]),
        ({"mtu": "-5"}, ["mtu", "-5"]),
        ({"mtu": "65486"}, ["mtu", "65486", "65485"]),
        ({"com.docker.network.driver.mtu": "x"}, ["com.docker.network.driver.mtu", "x"]),
        ({"mtu": "1400", "com.docker.network.driver.mtu": "1450"}, ["only one"]),
        ({"colour": "blue"}, ["colour", "blue", "remove it", "vni, vxlan_port, mtu"]),
    ],
)
def test_bad_network_options_name_field_value_and_remedy(options: dict[str, str], words: list[str]) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_network_options(options)
    for word in words:
        assert word in str(refusal.value)


def test_the_engines_own_keys_are_never_refused() -> None:
    options = parse_network_options({"com.docker.network.container_iface_prefix": "x", "vni": "7, 8"})
    assert options.vnis == (7, 8)
    check_endpoint_options({"com.docker.network.portmap": [], "com.docker.network.endpoint.ifname": "z"})


def test_an_unknown_endpoint_option_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match=r"'color'.*'blue'.*remove it"):
        check_endpoint_options({"color": "blue"})


def test_the_refusal_marker_is_not_offered_to_users() -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_network_options({"x": "y"})
    assert REFUSED not in str(refusal.value)


@pytest.mark.parametrize(
    ("prefixes", "swarm", "words"),
    [
        ([], False, ["subnet", "ipam"]),
        (["10.1.0.0/16", "10.1.2.0/24"], False, ["10.1.2.0/24", "overlaps 10.1.0.0/16"]),
        (["fd00::/64"], True, ["fd00::/64", "IPv4"]),
        (["0.0.0.0/0"], False, ["0.0.0.0/0"]),
    ],
)
def test_subnets_that_one_network_cannot_have(prefixes: list[str], swarm: bool, words: list[str]) -> None:
    with pytest.raises(BadRequest) as refusal:
        check_subnets([subnet(p) for p in prefixes], swarm=swarm)
    for word in words:
        assert word in str(refusal.value)


def test_dual_stack_shares_a_segment() -> None:
    v4, w4, v6 = subnet("10.1.0.0/24"), subnet("10.2.0.0/24"), subnet("fd00::/64")
    assert segments_of([v4, v6]) == [(v4, v6)]
    assert segments_of([v4, w4, v6]) == [(v4, w4, v6)]
    assert segments_of([v4, w4]) == [(v4,), (w4,)]
    assert segments_of([v6]) == [(v6,)]


@given(st.text("abcdefgh0123456789", min_size=25, max_size=25), st.integers(1, 5), st.sets(st.integers(1, 9)))
def test_derived_vnis_are_stable_distinct_and_far_from_the_built_in_drivers(
    network: str, segments: int, used: set[int]
) -> None:
    vnis = choose_vnis(NetworkId(network), (), segments, {Vni(u) for u in used})
    assert vnis == choose_vnis(NetworkId(network), (), segments, ())
    assert len(set(vnis)) == segments
    assert all(VNI_BASE <= vni <= MAX_VNI for vni in vnis)


def test_a_derived_vni_avoids_one_in_use() -> None:
    (first,) = choose_vnis(NET, (), 1, ())
    (second,) = choose_vnis(NET, (), 1, {first})
    assert second != first


def test_given_vnis_are_honoured_or_refused() -> None:
    assert choose_vnis(NET, (Vni(5),), 1, ()) == (5,)
    with pytest.raises(BadRequest, match="2 subnet"):
        choose_vnis(NET, (Vni(5),), 2, ())
    with pytest.raises(Conflict, match="vni: 5 is used"):
        choose_vnis(NET, (Vni(5),), 1, {Vni(5)})


def test_gateway_of_a_subnet_is_a_plain_address() -> None:
    assert subnet("10.1.0.0/24").gateway == ip_address("10.1.0.1")
