"""One value in one JSON file: replaced whole, checked when read, never overwritten unread.

The file holds a format number, the SHA-256 of the value's canonical JSON, and the value. A write goes to a
temporary file beside it, is flushed to the disk and renamed over the old file, and the folder is flushed:
after a crash at any point either the old or the new value is there, whole. What cannot be trusted is
refused and left as it is: what it describes may be in use, and a person can repair what a program could
only guess at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class JsonFile(Generic[T]):
    """The file at *path*; not for two writers at a time."""

    def __init__(
        self,
        path: Path,
        *,
        version: int,
        encode: Callable[[T], object],
        decode: Callable[[Any], T],
        loss: str,
        refusal: Callable[[Path, str, str], Exception],
    ) -> None:
        """*encode* turns a value into plain JSON values, and *decode* turns these back.

        *refusal* makes the exception that `load` and `save` raise, from the path, a clause that says what is
        wrong with the file and one that says what to do. *loss* ends "or move it away, which ...".
        """
        self._path = path
        self._version = version
        self._encode = encode
        self._decode = decode
        self._remedy = f"run the version that wrote it or restore a backup; or move it away, which {loss}"
        self._refuse = partial(refusal, path)
        self._temporary = path.with_name(f".{path.name}.new")
        self._loaded = False

    def load(self) -> T | None:
        """Return the value that was saved last, None if there never was one.

        Raises the refusal when the file cannot be read, is damaged, newer, or of another kind. The
        leftovers of an interrupted write are removed.
        """
        self._loaded = False
        self._drop_leftovers()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refuse(f"cannot be read ({error.strerror})", "make it readable") from error
        try:
            value = unpack(data, self._version, self._decode)
        except ValueError as error:
            raise self._refuse(str(error), self._remedy) from error
        self._loaded = True
        return value

    def save(self, value: T) -> None:
        """Replace the file; return when *value* would survive a power cut. A missing folder is made.

        Raises the refusal when that fails, and when there is a file that was not loaded. The old file is
        kept then.
        """
        data = pack(self._encode(value), self._version)
        try:
            if not self._loaded:
                self._prepare()
            self._replace(data)
        except OSError as error:
            self._drop_leftovers()
            raise self._refuse(
                f"cannot be written ({error.strerror})",
                "make room or make its folder writable; nothing was changed in it",
            ) from error
        self._loaded = True

    def _prepare(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.exists():
            raise self._refuse(
                "was not loaded, so it is not overwritten", "see the earlier error about loading it"
            )

    def _replace(self, data: bytes) -> None:
        with open(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _drop_leftovers(self) -> None:
        former = self._path.with_name(f"{self._path.name}.new")  # the network driver's former name for it
        for leftover in (self._temporary, former):
            with contextlib.suppress(OSError):  # on a read-only disk even removing nothing fails
                leftover.unlink()


def pack(body: object, version: int) -> bytes:
    """Return the content of a file that holds *body*, which is plain JSON values."""
    text = _canonical(body)
    return f'{{"version": {version}, "sha256": "{_digest(text)}", "state": {text}}}\n'.encode()


def unpack(data: bytes, version: int, decode: Callable[[Any], T]) -> T:
    """Return what *decode* returns for the body that `pack` was given.

    Raises ValueError with a clause that says what is wrong with the file.
    """
    try:
        document = json.loads(data)
        content = document if isinstance(document, dict) else {}
        digest = _digest(_canonical(content.get("state")))
    except (ValueError, RecursionError):
        raise ValueError("is damaged (it is not complete JSON)") from None
    found = content.get("version")
    if not isinstance(found, int):
        raise ValueError("is damaged (it has no version)")
    if found != version:
        age = "a newer" if found > version else "an older"
        raise ValueError(f"was written by {age} version (format {found}; this one knows {version})")
    if content.get("sha256") != digest:
        raise ValueError("is damaged (its checksum does not match)")
    try:
        return decode(content.get("state"))
    except Exception as error:  # well-formed content of another kind can fail in any way
        raise ValueError(f"holds something else ({type(error).__name__}: {error})") from error


def _canonical(body: object) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
