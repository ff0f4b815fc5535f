"""The search for the largest batch, on memories that are cheaper to ask than a compiler."""

import pytest

from flaxbert.tools.largest_batch import CLOSE_ENOUGH, Attempt, bounds, largest_batch

CAPACITY, FIXED = 80_000, 4_000


def search(needs, first=64, multiple=8, most=30, silent=False):
    """All attempts on a device that needs `needs(rows)` bytes; `silent`: a refusal does not say how many."""

    def attempt(rows):
        fits = needs(rows) <= CAPACITY
        return Attempt(rows, needs(rows) if fits or not silent else None, fits)

    return largest_batch(attempt, attempt(first), multiple, CAPACITY, FIXED, most)


MEMORIES = {
    "line": lambda rows: FIXED + 97 * rows,
    "line with more fixed than is known": lambda rows: 3 * FIXED + 31 * rows,
    "curve": lambda rows: FIXED + rows**2 // 50,
    "stairs": lambda rows: FIXED + 9_000 * (rows // 100),
    "compiler that saves memory when it must": lambda rows: min(FIXED + 200 * rows, 60_000) + 20 * rows,
}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("first", [8, 64, 4096])
@pytest.mark.parametrize("name", MEMORIES)
def test_the_answer_fits_and_is_close_to_the_largest_that_does(name, first, silent):
    needs = MEMORIES[name]
    tried = search(needs, first, silent=silent)
    fits, refused = bounds(tried)
    assert needs(fits) <= CAPACITY < needs(refused)
    assert refused - fits <= max(8, fits // CLOSE_ENOUGH), "the gap is closed"
    assert {attempt.rows % 8 for attempt in tried} == {0}
    assert len({attempt.rows for attempt in tried}) == len(tried), "nothing is compiled twice"
    assert len(tried) <= 14, "halving a gap of some 4,000 rows takes ten"


@pytest.mark.parametrize("first", [64, 4096])
def test_a_straight_line_takes_two_compilations_more(first):
    assert len(search(MEMORIES["line"], first)) == 3


def test_no_more_is_tried_than_is_allowed():
    assert [attempt.rows for attempt in search(MEMORIES["curve"], most=0)] == [64]
    assert len(search(MEMORIES["curve"], most=2)) == 3


def test_where_not_even_the_smallest_batch_fits_none_is_named():
    tried = search(lambda rows: CAPACITY + rows, first=64)
    assert bounds(tried) == (0, 8)
