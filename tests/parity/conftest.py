"""How a test of this folder states what it found, for the table that `python -m benchmarks.parity` writes."""

from collections.abc import Callable

import pytest


@pytest.fixture
def assert_parity(record_property) -> Callable[[str, str, float, float], None]:
    """Records one comparison, then asserts that its worst deviation is within the tolerance:

        def test_logits_equal_those_of_transformers(assert_parity):
            ...
            worst = np.abs(found - expected).max()
            assert_parity("MLM logits", "transformers BertForPreTraining", worst, TOLERANCE)

    The table has a row for each `what`, `peer` and `tolerance`, with the worst of all the tests that name them: leave
    the case out of `what` where all cases promise the same, and put the measure in where it is not the plain absolute
    difference ("…, relative to the tensor's largest entry"). What must be equal has tolerance 0 and, as its worst,
    the number of things that differ. NaN is never within a tolerance.
    """

    def record_and_assert(what: str, peer: str, worst: float, tolerance: float) -> None:
        record_property("parity", (what, peer, float(worst), tolerance))
        assert worst <= tolerance, f"{what} against {peer}: {worst:.3g} where {tolerance:.3g} is allowed"

    return record_and_assert
