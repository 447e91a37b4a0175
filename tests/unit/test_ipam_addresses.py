"""AddressSet against Python's own set."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.addresses import AddressSet

# Around the edges of the 4096-bit chunks, and far out in a /64.
OFFSETS = st.integers(0, 12) | st.integers(4085, 4105) | st.integers(0, 2**64 - 1)
SETS = st.sets(OFFSETS, max_size=40)


def build(offsets: set[int]) -> AddressSet:
    made = AddressSet()
    for offset in offsets:
        made = made.add(offset)
    return made


@settings(deadline=None)
@given(SETS, SETS)
def test_it_behaves_as_a_set(one: set[int], other: set[int]) -> None:
    a, b = build(one), build(other)
    assert set(a | b) == one | other
    assert set(a & b) == one & other
    assert set(a - b) == one - other
    assert list(a) == sorted(one)
    assert len(a) == len(one)
    assert bool(a) == bool(one)
    assert (a == b) == (one == other)


@settings(deadline=None)
@given(SETS, OFFSETS)
def test_adding_and_discarding_leave_the_original_alone(members: set[int], offset: int) -> None:
    original = build(members)
    assert set(original.add(offset)) == members | {offset}
    assert set(original.discard(offset)) == members - {offset}
    assert set(original) == members
    assert (offset in original) == (offset in members)


@settings(deadline=None)
@given(SETS, OFFSETS, st.integers(0, 9000))
def test_next_free_is_the_lowest_one_missing(members: set[int], first: int, width: int) -> None:
    last = first + width
    expected = next((n for n in range(first, last + 1) if n not in members), None)
    assert build(members).next_free(first, last) == expected


@settings(deadline=None)
@given(SETS, OFFSETS, st.integers(-1, 9000))
def test_count_between_counts_members(members: set[int], first: int, width: int) -> None:
    last = first + width
    assert build(members).count_between(first, last) == len([n for n in members if first <= n <= last])


@settings(deadline=None)
@given(SETS)
def test_the_text_form_comes_back_equal(members: set[int]) -> None:
    original = build(members)
    assert AddressSet.from_text(original.to_text(), 2**64) == original


def test_a_long_run_is_short_text() -> None:
    assert AddressSet.span(1, 100_000).to_text() == "1-100000"
    assert len(AddressSet.span(1, 100_000)) == 100_000


def test_a_full_chunk_is_stepped_over() -> None:
    assert AddressSet.span(0, 3 * 4096 - 1).next_free(0, 2**64) == 3 * 4096
