"""Budget arithmetic: rounding half up, at least one, and errors that name what is wrong."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import GreedyRepMax, MIAlignment, TrimTokenator
from tokenprune.core.budget import check_keep, keep_count


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [
        (0.8, 576, 461),
        (0.111, 576, 64),
        (0.222, 576, 128),
        (0.333, 576, 192),
        (0.056, 576, 32),
        (0.5, 5, 3),
        (0.145, 100, 15),
    ],
)
def test_shares_are_rounded_half_up(keep: float, total: int, count: int) -> None:
    assert keep_count(keep, total) == count


@given(st.integers(1, 1000), st.integers(1, 3000))
def test_share_is_the_written_decimal_rounded_half_up(thousandths: int, total: int) -> None:
    exact = Fraction(thousandths, 1000) * total
    assert keep_count(thousandths / 1000, total) == max(1, math.floor(exact + Fraction(1, 2)))


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 5000))
def test_share_is_between_one_and_all(keep: float, total: int) -> None:
    count = keep_count(check_keep(keep, owner="Test"), total)
    assert 1 <= count <= total
    assert abs(count - keep * total) <= 0.5 + 1e-6 or count == 1


def test_numpy_scalars_become_plain_numbers() -> None:
    assert type(check_keep(np.int64(3), owner="Test")) is int
    assert type(check_keep(np.float64(0.5), owner="Test")) is float


@pytest.mark.parametrize("keep", [0, -3, 0.0, -0.1, 1.0001, 2.0, math.nan, math.inf, True, False, "64", None, [1], 1j])
@pytest.mark.parametrize("cls", [MIAlignment, GreedyRepMax, TrimTokenator])
def test_bad_budget_names_class_parameter_and_value(cls: type, keep: object) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        cls(keep)
    for word in (cls.__name__, "keep", repr(keep)):
        assert word in str(caught.value)


def test_trim_tokenator_names_align() -> None:
    with pytest.raises(ValueError, match=r"TrimTokenator: align must be .* got -1"):
        TrimTokenator(3, align=-1)


def test_a_share_above_one_points_to_the_int() -> None:
    with pytest.raises(ValueError, match="write an int, keep=64"):
        MIAlignment(64.0)
