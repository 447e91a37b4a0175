"""A file is replaced whole, for its owner alone; what cannot be trusted is refused and left as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lib.json_file import JsonFile, pack, unpack

LEFTOVERS = (".names.json.new", "names.json.new")
"""What this version and the former ones call a file that is being written."""


class Refusal(Exception):
    """What the owner of a file makes of the reasons."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path.name} {problem}; {remedy}")


class Names(JsonFile[frozenset[str]]):
    """A set of names."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, version=1, encode=sorted, decode=_decode, loss="forgets them", refusal=Refusal)


def _decode(body: Any) -> frozenset[str]:
    return frozenset(name.strip() for name in body)


SOME, OTHERS = frozenset({"a", "b"}), frozenset({"c"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "names.json"


@pytest.fixture
def names(path: Path) -> Names:
    names = Names(path)
    assert names.load() is None
    names.save(SOME)
    return names


def test_what_was_saved_is_loaded(names: Names, path: Path) -> None:
    assert Names(path).load() == SOME
    names.save(OTHERS)
    assert Names(path).load() == OTHERS


def test_folder_and_file_are_the_owners_alone(names: Names, path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_looking_for_a_file_makes_nothing(path: Path) -> None:
    assert Names(path).load() is None
    assert not path.parent.exists()


def test_a_write_cut_short_leaves_the_old_value_and_no_file(names: Names, path: Path) -> None:
    new = pack(sorted(OTHERS), 1)
    for length in range(len(new) + 1):
        for leftover in LEFTOVERS:
            path.with_name(leftover).write_bytes(new[:length])
        assert Names(path).load() == SOME
        assert os.listdir(path.parent) == ["names.json"]


def test_a_write_that_fails_leaves_the_old_value_and_no_file(
    names: Names, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Refusal, match=r"cannot be written \(No space left on device\); make room"):
            names.save(OTHERS)
    assert os.listdir(path.parent) == ["names.json"]
    assert Names(path).load() == SOME
    names.save(OTHERS)
    assert Names(path).load() == OTHERS


def body(names: object, **other: object) -> bytes:
    return json.dumps({**json.loads(pack(names, 1)), **other}).encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"is damaged \(it is not complete JSON\)"),
        (b"\xff\xfe", r"is damaged \(it is not complete JSON\)"),
        (b"[" * 100_000, r"is damaged \(it is not complete JSON\)"),
        (b"null", r"is damaged \(it has no version\)"),
        (b"[]", r"is damaged \(it has no version\)"),
        (b"{}", r"is damaged \(it has no version\)"),
        (body([], version="1"), r"is damaged \(it has no version\)"),
        (body([], version=0), r"was written by an older version \(format 0; this one knows 1\)"),
        (body([], version=2), r"was written by a newer version \(format 2; this one knows 1\)"),
        (b'{"version": 2, "shape": "unknown"}', r"was written by a newer version \(.*\)"),
        (b'{"version": 1}', r"is damaged \(its checksum does not match\)"),
        (body(["a"], state=["b"]), r"is damaged \(its checksum does not match\)"),
        (body(["a"], sha256=None), r"is damaged \(its checksum does not match\)"),
        (body(None), r"holds something else \(TypeError: 'NoneType' object is not iterable\)"),
        (body([1]), r"holds something else \(AttributeError: 'int' object has no attribute 'strip'\)"),
    ],
)
def test_what_cannot_be_trusted_is_refused_and_left(path: Path, content: bytes, problem: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    names = Names(path)
    for _ in range(2):
        with pytest.raises(Refusal, match=rf"names\.json {problem}; run the version that wrote it"):
            names.load()
        with pytest.raises(Refusal, match="was not loaded, so it is not overwritten"):
            names.save(OTHERS)
    assert path.read_bytes() == content
    path.unlink()  # moved away, as the sentence says
    assert names.load() is None
    names.save(OTHERS)
    assert Names(path).load() == OTHERS


def test_what_nobody_loaded_is_not_overwritten(names: Names, path: Path) -> None:
    with pytest.raises(Refusal, match="was not loaded"):
        Names(path).save(OTHERS)
    assert Names(path).load() == SOME


def test_what_has_become_unreadable_is_not_overwritten(names: Names, path: Path) -> None:
    assert names.load() == SOME
    path.write_text("{")
    with pytest.raises(Refusal, match="is damaged"):
        names.load()
    with pytest.raises(Refusal, match="was not loaded"):
        names.save(OTHERS)


def test_what_cannot_be_read_is_no_empty_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(Refusal, match=r"names\.json cannot be read \(Is a directory\); make it readable"):
        Names(path).load()


def test_any_order_and_spacing_is_read() -> None:
    packed = pack({"b": 1, "a": [2]}, 1)
    spaced = json.dumps(json.loads(packed), indent=2, sort_keys=True).encode()
    assert unpack(packed, 1, dict) == unpack(spaced, 1, dict) == {"a": [2], "b": 1}
