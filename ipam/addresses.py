"""AddressSet: an immutable set of addresses of one pool, kept as offsets from its first address.

A /8 or a /64 must cost nothing and 10,000 addresses must stay cheap. The set is a dict of
4096-bit integers: Python integers are immutable already, so a changed copy shares all chunks but
one, and "the first free address from here on" is a handful of integer operations per chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BITS = 4096


def _mask(first: int, last: int) -> int:
    """Return bits *first* to *last* (both included, within one chunk) set."""
    return ((1 << (last - first + 1)) - 1) << first


def _runs_of(bits: int) -> Iterator[tuple[int, int]]:
    """Return the runs of set bits in one chunk, lowest first."""
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        position += zeros
        ones = (~bits & -~bits).bit_length() - 1
        yield position, position + ones - 1
        bits >>= ones
        position += ones


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Immutable set of offsets (0 = the pool's first address); no empty chunk is ever kept."""

    chunks: Mapping[int, int] = field(default_factory=dict)

    def __contains__(self, offset: int) -> bool:
        return bool(self.chunks.get(offset // _BITS, 0) >> (offset % _BITS) & 1)

    def __bool__(self) -> bool:
        return bool(self.chunks)

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self.chunks.values())

    def __iter__(self) -> Iterator[int]:
        for first, last in self.runs():
            yield from range(first, last + 1)

    def _with_chunk(self, index: int, bits: int) -> AddressSet:
        if bits == self.chunks.get(index, 0):
            return self
        chunks = dict(self.chunks)
        if bits:
            chunks[index] = bits
        else:
            del chunks[index]
        return AddressSet(chunks)

    def add(self, offset: int) -> AddressSet:
        """Return the set with *offset*; the same object if it was in already."""
        index = offset // _BITS
        return self._with_chunk(index, self.chunks.get(index, 0) | 1 << offset % _BITS)

    def discard(self, offset: int) -> AddressSet:
        """Return the set without *offset*; the same object if it was not in."""
        index = offset // _BITS
        return self._with_chunk(index, self.chunks.get(index, 0) & ~(1 << offset % _BITS))

    def __or__(self, other: AddressSet) -> AddressSet:
        keys = self.chunks.keys() | other.chunks.keys()
        return AddressSet({k: self.chunks.get(k, 0) | other.chunks.get(k, 0) for k in keys})

    def __and__(self, other: AddressSet) -> AddressSet:
        keys = self.chunks.keys() & other.chunks.keys()
        return AddressSet({k: bits for k in keys if (bits := self.chunks[k] & other.chunks[k])})

    def __sub__(self, other: AddressSet) -> AddressSet:
        kept = {k: bits & ~other.chunks.get(k, 0) for k, bits in self.chunks.items()}
        return AddressSet({k: bits for k, bits in kept.items() if bits})

    def count_between(self, first: int, last: int) -> int:
        """Return how many members lie from *first* to *last*, both included."""
        total = 0
        for index, bits in self.chunks.items():
            low, high = max(first - index * _BITS, 0), min(last - index * _BITS, _BITS - 1)
            total += (bits & _mask(low, high)).bit_count() if low <= high else 0
        return total

    def next_free(self, first: int, last: int) -> int | None:
        """Return the lowest offset from *first* to *last* (both included) that is not a member, or None."""
        index = first // _BITS
        while first <= last:
            free = ~self.chunks.get(index, 0) & _mask(first % _BITS, _BITS - 1)
            if free:
                found = index * _BITS + (free & -free).bit_length() - 1
                return found if found <= last else None
            index += 1
            first = index * _BITS
        return None

    def runs(self) -> Iterator[tuple[int, int]]:
        """Return the members as (first, last) runs in rising order, none touching the next."""
        pending: tuple[int, int] | None = None
        for index in sorted(self.chunks):
            for low, high in _runs_of(self.chunks[index]):
                run = (index * _BITS + low, index * _BITS + high)
                if pending and pending[1] + 1 == run[0]:
                    pending = (pending[0], run[1])
                    continue
                if pending:
                    yield pending
                pending = run
        if pending:
            yield pending

    def to_text(self) -> str:
        """Return the compact form for the state file, such as "1-5,9"."""
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in self.runs())

    @classmethod
    def span(cls, first: int, last: int) -> AddressSet:
        """Return all offsets from *first* to *last*; costs one chunk per 4096 of them."""
        chunks = {}
        for index in range(first // _BITS, last // _BITS + 1):
            base = index * _BITS
            chunks[index] = _mask(max(first - base, 0), min(last - base, _BITS - 1))
        return cls(chunks)

    @classmethod
    def from_text(cls, text: str, size: int) -> AddressSet:
        """Return what `to_text` wrote; raise ValueError if *text* is malformed or reaches *size*."""
        chunks: dict[int, int] = {}
        for part in filter(None, text.split(",")):
            low, _, high = part.partition("-")
            first, last = int(low), int(high or low)
            if not 0 <= first <= last < size:
                raise ValueError(f"run {part} lies outside of a pool of {size} addresses")
            for index, bits in cls.span(first, last).chunks.items():
                chunks[index] = chunks.get(index, 0) | bits
        return cls(chunks)
