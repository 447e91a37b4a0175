"""Text that is as long as somebody else made it, cut to what its reader bears."""

from __future__ import annotations


def bounded(text: str, limit: int) -> bytes:
    """Return *text* in UTF-8, in at most *limit* bytes, of which there are a hundred or more.

    Its middle goes first, and a note says how much: the beginning tells what it is about, the end what to do.
    """
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return data
    note = f" ...({len(data) - limit:,} bytes more)... ".encode()
    room = limit - len(note)
    head, tail = data[: room * 2 // 3], data[-(room // 3) :]
    return _whole(head) + note + _whole(tail)


def _whole(part: bytes) -> bytes:
    """Drop the halves of characters at both ends."""
    return part.decode(errors="ignore").encode()
