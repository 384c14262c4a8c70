"""P-values against enumeration and textbook formulas."""

from itertools import product
from math import comb

import numpy as np
import pytest

from tokenprune.evaluate.significance import corrected, mcnemar, paired_p_value


def test_mcnemar_is_the_binomial_sign_test_on_the_discordant_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random((2, 40)) < rng.random((2, 1))
        found = mcnemar(first.tolist(), second.tolist())
        n, k = found.only_first + found.only_second, min(found.only_first, found.only_second)
        tail = 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n
        assert found.p_value == pytest.approx(min(1.0, tail))
        assert found.only_first == sum(a and not b for a, b in zip(first, second, strict=True))


def test_mcnemar_without_a_difference_is_no_finding() -> None:
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_the_exchange_of_whole_images_is_the_enumeration_over_them() -> None:
    rng = np.random.default_rng(1)
    units = [f"i{i // 3}" for i in range(24)]
    method, reference = rng.random(24) < 0.7, rng.random((2, 24)) < 0.4
    difference = method - reference.mean(0)
    totals = [difference[i : i + 3].sum() for i in range(0, 24, 3)]
    sums = [abs(sum(s * t for s, t in zip(signs, totals, strict=True))) for signs in product((1, -1), repeat=8)]
    expected = np.mean([value >= abs(sum(totals)) - 1e-12 for value in sums])
    assert paired_p_value(method, reference, units) == pytest.approx(expected)


def test_images_without_a_difference_do_not_count() -> None:
    few = paired_p_value([1, 1, 1, 0], [0, 0, 0, 1], list("abcd"))
    many = paired_p_value([1, 1, 1, 0, *[1] * 40], [0, 0, 0, 1, *[1] * 40], [str(i) for i in range(44)])
    assert few == many == pytest.approx(10 / 16)
    assert paired_p_value([1, 0], [1, 0], ["a", "b"]) == 1.0


def test_shared_images_weaken_the_evidence() -> None:
    method, reference = [1] * 30 + [0] * 10, [0] * 40
    alone = paired_p_value(method, reference, [str(i) for i in range(40)])
    shared = paired_p_value(method, reference, [str(i // 10) for i in range(40)])
    assert alone < 0.001
    assert shared == pytest.approx(0.25)


def test_holm_multiplies_the_smallest_by_their_number_and_keeps_the_order() -> None:
    values = [0.04, 0.001, 0.03, 0.5]
    order = sorted(range(4), key=lambda i: values[i])
    expected, running = [0.0] * 4, 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (4 - rank) * values[place]))
        expected[place] = running
    assert corrected(values) == pytest.approx(expected)
    assert corrected(values, "bonferroni") == pytest.approx([min(1.0, 4 * p) for p in values])
    assert corrected([]) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="must be one of 'holm'"):
        corrected([0.1], "none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 1.5"):
        corrected([1.5])
    with pytest.raises(ValueError, match="pair them up"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="pair them up"):
        paired_p_value([1, 0], [1, 0], ["a"])
