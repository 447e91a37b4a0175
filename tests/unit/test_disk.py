"""The state file survives torn writes, and refuses what it cannot read without touching it."""

from __future__ import annotations

import json
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
    with pytest.raises(DiskError, match="format 2, this program reads 1"):
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
