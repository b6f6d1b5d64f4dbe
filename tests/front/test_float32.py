"""Numbers print as float32 values, judged by numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.front.float32 import LARGEST, shortest, to_float32

FLOATS = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32)


@given(FLOATS)
def test_shortest_prints_what_numpy_prints_for_a_float32(value: float) -> None:
    assert np.float32(repr(shortest(value))) == np.float32(value)
    assert shortest(value) == float(str(np.float32(value)))


ONE_DIGIT_MORE = (-96, 87, 90)  # powers of two whose shortest decimal is not the nearest one


@pytest.mark.parametrize("exponent", sorted({*range(-126, 128)} - {*ONE_DIGIT_MORE}))
def test_powers_of_two_and_their_neighbours_print_shortest(exponent: int) -> None:
    """Below a power of two float32 values lie twice as close as above."""
    power = np.float32(2.0) ** exponent
    for value in (np.nextafter(power, np.float32(0)), power, np.nextafter(power, np.float32(1e38))):
        if value >= np.finfo(np.float32).tiny:
            assert shortest(float(value)) == float(str(value))


@pytest.mark.parametrize("exponent", ONE_DIGIT_MORE)
def test_these_are_the_same_number_all_the_same(exponent: int) -> None:
    assert np.float32(repr(shortest(2.0**exponent))) == np.float32(2.0) ** exponent


@given(st.floats(min_value=-1e38, max_value=1e38))
def test_rounding_agrees_with_numpy(value: float) -> None:
    assert to_float32(value) == float(np.float32(value))


def test_beyond_the_range_becomes_the_largest_value() -> None:
    assert to_float32(1e300) == LARGEST
    assert to_float32(-1e300) == -LARGEST


def test_what_is_not_a_number_passes_through() -> None:
    assert math.isnan(shortest(math.nan))
    assert shortest(-math.inf) == -math.inf
