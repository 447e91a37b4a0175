"""The state file survives torn writes, and refuses what it cannot read without touching it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from driver.wish.disk import WishFile, decode, encode, load_or_new
from driver.wish.errors import DiskError
from driver.wish.model import Endpoint, Host, Network, Phase, Segment, Subnet
from driver.wish.state import State
from driver.wish.values import EndpointId, Mac, NetworkId, NodeId, Vni
from driver.wish.wish import Wish
from lib.json_file import pack

FORMER = Path(__file__).parents[1] / "data" / "former"
"""Files that the version wrote which had a writer of its own for each (6be4165)."""

STATE = State(
    host=Host(NodeId("me"), ip_address("192.0.2.1")),
    networks={
        NetworkId("net"): Network(
            NetworkId("net"),
            (
                Segment(
                    Vni(70001),
                    (
                        Subnet(ip_network("10.1.0.0/24"), ip_address("10.1.0.1")),
                        Subnet(ip_network("fd00::/64"), None),
                    ),
                ),
            ),
            port=4790,
            mtu=1400,
            internal=True,
        )
    },
    endpoints={
        EndpointId("ep"): Endpoint(
            EndpointId("ep"),
            NetworkId("net"),
            (ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64")),
            Mac("02:42:0a:01:00:05"),
            Phase.JOINED,
        )
    },
    allocations={NetworkId("net"): (Vni(70001),)},
)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    WishFile(tmp_path / "sub" / "state.json").load()
    disk = WishFile(tmp_path / "sub" / "state.json")
    disk.save(STATE)
    assert WishFile(tmp_path / "sub" / "state.json").load() == STATE


def test_what_versions_before_did_not_know_is_read_back_and_is_not_there_without_need(tmp_path: Path) -> None:
    one = replace(STATE.endpoints[EndpointId("ep")], multicast=True)
    more = replace(STATE, endpoints={one.id: one}, refused={NetworkId("bad"): "a reason"})
    WishFile(tmp_path / "state.json").save(more)
    assert WishFile(tmp_path / "state.json").load() == more
    assert "refused" not in encode(STATE)
    assert "multicast" not in encode(STATE)["endpoints"][0]


def test_a_file_of_a_version_that_knew_no_sandboxes_is_read(tmp_path: Path) -> None:
    body = encode(STATE)
    for endpoint in body["endpoints"]:
        del endpoint["sandbox"]
    assert decode(body) == STATE


def test_a_new_host_gets_an_identity_that_lasts(tmp_path: Path) -> None:
    first = load_or_new(WishFile(tmp_path / "state.json"))
    assert load_or_new(WishFile(tmp_path / "state.json")).host == first.host


def test_every_torn_write_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    disk = WishFile(path)
    disk.save(STATE)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "state.json.new").write_bytes(whole[:length])
        assert WishFile(path).load() == STATE
        assert not (tmp_path / "state.json.new").exists()


def test_every_truncation_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    WishFile(path).save(STATE)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DiskError, match=r"state\.json is damaged.*move it away"):
            WishFile(path).load()
        assert path.read_bytes() == whole[:length]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    WishFile(path).save(STATE)
    path.write_text(path.read_text().replace("10.1.0.5/24", "10.1.0.6/24"))
    with pytest.raises(DiskError, match="checksum"):
        WishFile(path).load()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    WishFile(path).save(STATE)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(DiskError, match=r"newer version \(format 2; this one knows 1\)"):
        WishFile(path).load()


def test_a_disk_that_fails_changes_nothing(tmp_path: Path) -> None:
    wish = Wish(WishFile(tmp_path / "state.json"))
    before = wish.snapshot()
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()
    with pytest.raises(DiskError, match="nothing was changed"):
        wish.change(lambda state: replace(state, networks=STATE.networks))
    assert wish.snapshot() == before
    assert not (tmp_path / "state.json.new").exists()


def test_soft_state_is_not_written(tmp_path: Path) -> None:
    wish = Wish(WishFile(tmp_path / "state.json"))
    stamp = (tmp_path / "state.json").stat().st_mtime_ns
    wish.change(lambda state: replace(state, joining={EndpointId("ep"): "a Join"}))
    assert (tmp_path / "state.json").stat().st_mtime_ns == stamp
    assert wish.state.joining == {"ep": "a Join"}


def test_reserved_addresses_are_read_back_and_harmless_to_the_former_version(tmp_path: Path) -> None:
    net = NetworkId("a" * 64)
    plain = Subnet(ip_network("10.1.0.0/24"), ip_address("10.1.0.1"))
    kept = replace(plain, reserved=frozenset({ip_address("10.1.0.9"), ip_address("10.1.0.3")}))
    disk = WishFile(tmp_path / "state.json")
    state = State(Host(NodeId("me")), {net: Network(net, (Segment(Vni(7), (kept,)),))})
    disk.save(state)
    assert disk.load() == state
    (row,) = encode(state)["networks"][0]["segments"][0]["subnets"]
    assert row == {"prefix": "10.1.0.0/24", "gateway": "10.1.0.1", "reserved": ["10.1.0.3", "10.1.0.9"]}


def test_what_a_swarm_has_agreed_on_is_read_back_and_harmless_to_the_former_version(tmp_path: Path) -> None:
    told = replace(STATE, host=replace(STATE.host, swarm_port=7789, path_mtu=1400))
    WishFile(tmp_path / "state.json").save(told)
    assert WishFile(tmp_path / "state.json").load() == told
    assert encode(told)["host"].items() >= encode(STATE)["host"].items(), "what was there is as it was"
    assert not {"swarm_port", "path_mtu"} & encode(STATE)["host"].keys()


def test_a_file_of_the_former_version_is_read_and_stays_as_it_is(tmp_path: Path) -> None:
    net, web = NetworkId("u4m9hzge31tsafr3nembuizn6"), NetworkId("k2q8fz0d7wxbnmc5rjt1vplya")
    a, b, c = (EndpointId(letter * 64) for letter in "abc")
    dual = Subnet(ip_network("10.1.0.0/24"), ip_address("10.1.0.1")), Subnet(ip_network("fd00:1::/64"))
    large = (Subnet(ip_network("10.2.0.0/16"), ip_address("10.2.0.1")),)
    small = (Subnet(ip_network("10.3.0.0/24"), ip_address("10.3.0.1")),)
    segments = Segment(Vni(70001), dual), Segment(Vni(70002), large)
    here = ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64")
    netns = "/run/docker/netns/"
    mac = [Mac(f"02:42:0a:0{n}") for n in ("1:00:05", "3:00:07", "3:00:08")]
    expected = State(
        Host(NodeId("5f1d3c0b9a8e4f7d8c6b5a4938271605"), ip_address("192.0.2.1")),
        networks={
            net: Network(net, segments, port=4790, mtu=1400, underlay_mtu=1500, internal=True),
            web: Network(web, (Segment(Vni(4097), small),)),
        },
        endpoints={
            a: Endpoint(a, net, here, mac[0], Phase.JOINED, netns + "5f1d3c0b9a8e"),
            b: Endpoint(b, web, (ip_interface("10.3.0.7/24"),), mac[1]),
            c: Endpoint(c, web, (ip_interface("10.3.0.8/24"),), mac[2], Phase.LEFT, netns + "0c1b2a394857"),
        },
        allocations={net: (Vni(70001), Vni(70002)), web: (Vni(4097),)},
    )
    path = tmp_path / "state.json"
    shutil.copy(FORMER / "state.json", path)
    disk = WishFile(path)
    assert disk.load() == expected
    disk.save(expected)
    assert path.read_bytes() == (FORMER / "state.json").read_bytes()


def test_when_an_address_was_claimed_is_kept(tmp_path: Path) -> None:
    """A new process must not take an address back that another host has claimed since."""
    endpoints = {id_: replace(e, claimed=1_800_000_000_123) for id_, e in STATE.endpoints.items()}
    disk = WishFile(tmp_path / "state.json")
    disk.load()
    disk.save(replace(STATE, endpoints=endpoints))
    found = WishFile(tmp_path / "state.json").load()
    assert found is not None
    assert found.endpoints == endpoints


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        json.loads((FORMER / "ipam.json").read_text())["state"],
        {**encode(STATE), "networks": 3},
        {**encode(STATE), "host": {"id": "me", "vtep": "nowhere"}},
        {**encode(STATE), "endpoints": [{**encode(STATE)["endpoints"][0], "phase": "unheard of"}]},
        {**encode(STATE), "allocations": []},
    ],
)
def test_foreign_content_is_refused_with_a_sentence_and_never_overwritten(
    tmp_path: Path, body: object
) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content := pack(body, 1))
    disk = WishFile(path)
    with pytest.raises(DiskError, match=r"state\.json holds something else \(.*\); .*move it away"):
        Wish(disk)
    with pytest.raises(DiskError, match="was not loaded, so it is not overwritten"):
        disk.save(STATE)
    assert path.read_bytes() == content
