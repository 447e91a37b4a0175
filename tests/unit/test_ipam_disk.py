"""The state file: what is written comes back, what is torn is refused, nothing is overwritten."""

import json
import os
import shutil
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

import ipam.disk
from ipam.addresses import AddressSet
from ipam.disk import LeaseFile
from ipam.errors import DiskError
from ipam.pools import IpamState, Pool, Space
from lib.json_file import pack, unpack

FORMER = Path(__file__).parents[1] / "data" / "former"
"""Files that the version wrote which had a writer of its own for each (6be4165)."""

V4, V6, SUB = ip_network("10.1.0.0/16"), ip_network("fd00::/64"), ip_network("10.1.2.0/24")
STATE = IpamState(
    ula_id=0xABCDEF,
    pools={
        (Space.LOCAL, V4): Pool(
            V4,
            leases=AddressSet.span(1, 9000).add(60000),
            gateways=AddressSet.span(1, 1),
            cursors={None: 9000, SUB: None},
        ),
        (Space.GLOBAL, V4): Pool(V4, leases=AddressSet.span(7, 7), cursors={None: 7}, networks=2, swarm=True),
        (Space.LOCAL, V6): Pool(V6, leases=AddressSet().add(2**64 - 1), cursors={None: None}),
    },
)


def encode(state: IpamState) -> bytes:
    return pack(ipam.disk.encode(state), 1)


def decode(data: bytes) -> IpamState:
    return unpack(data, 1, ipam.disk.decode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ipam" / "state.json"


def stored(path: Path) -> LeaseFile:
    store = LeaseFile(path)
    store.load()
    store.save(STATE)
    return store


def test_a_state_comes_back_equal(path: Path) -> None:
    stored(path)
    assert LeaseFile(path).load() == STATE


def test_no_file_is_no_state(path: Path) -> None:
    assert LeaseFile(path).load() is None


def test_the_file_is_compact_and_only_the_owners(path: Path) -> None:
    stored(path)
    assert b'"1-9000,60000"' in path.read_bytes()
    assert len(path.read_bytes()) < 1000
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_cut_at_any_point_is_refused_and_left_alone(path: Path) -> None:
    stored(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is the final newline
        path.write_bytes(whole[:length])
        store = LeaseFile(path)
        with pytest.raises(DiskError, match=rf'state file "{path}": is damaged .*; run the version'):
            store.load()
        with pytest.raises(DiskError, match="was not loaded"):
            store.save(IpamState(ula_id=1))
        assert path.read_bytes() == whole[:length]


def test_a_write_torn_at_any_point_leaves_the_old_state(path: Path) -> None:
    stored(path)
    new = encode(replace(STATE, ula_id=5))
    temporary = path.with_name(".state.json.new")
    for length in range(len(new) + 1):
        temporary.write_bytes(new[:length])
        assert LeaseFile(path).load() == STATE
        assert not temporary.exists()


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    whole = encode(STATE)
    for position in range(len(whole) - 1):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1
        try:
            assert decode(bytes(spoilt)) == STATE  # a flip that means nothing, if there is one
        except ValueError:
            continue


def test_a_newer_file_is_refused_by_its_version(path: Path) -> None:
    stored(path)
    path.write_text(json.dumps({"version": 2, "shape": "unknown"}))
    with pytest.raises(DiskError, match=r"newer version \(format 2; this one knows 1\); run the version"):
        LeaseFile(path).load()


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"version":"1"}', b'{"version":1}', b"\xff\xfe", b"[" * 100_000],
)
def test_any_other_content_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DiskError, match="is damaged"):
        LeaseFile(path).load()


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"cannot be written \(No space left on device\); make room"):
        store.save(replace(STATE, ula_id=5))
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]
    assert LeaseFile(path).load() == STATE


def test_a_file_that_cannot_be_read_is_an_error_not_an_empty_state(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(DiskError, match=r"cannot be read \(Is a directory\)"):
        LeaseFile(path).load()


def test_everything_is_flushed_before_and_after_the_rename(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def spy_rename(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_rename)
    stored(path)
    assert steps == ["fsync .state.json.new", "rename .state.json.new state.json", "fsync ipam"]


def test_a_file_of_the_former_version_is_read_and_says_the_same_when_it_is_written_again(path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(FORMER / "ipam.json", path)
    leader = Pool(
        V4,
        leases=AddressSet.span(1, 7),
        gateways=AddressSet.span(1, 1),
        cursors={None: 7},
        networks=2,
        swarm=True,
    )
    expected = replace(STATE, pools={**STATE.pools, (Space.GLOBAL, V4): leader})
    store = LeaseFile(path)
    assert store.load() == expected
    store.save(expected)
    assert json.loads(path.read_bytes()) == json.loads((FORMER / "ipam.json").read_bytes())


def test_a_file_of_the_network_driver_is_refused_with_a_sentence(path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(FORMER / "state.json", path)
    with pytest.raises(DiskError, match=r"holds something else \(KeyError: 'ula_id'\); run the version"):
        LeaseFile(path).load()
