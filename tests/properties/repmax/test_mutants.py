"""Planted bugs: each statement of `statements.py` must fail on code that breaks it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.properties.repmax import statements
from tests.properties.repmax.clouds import Array, Cloud, some_clouds
from tokenprune.repmax import certificate, exact, greedy, local_search
from tokenprune.repmax.problem import objective, relaxation, shift
from tokenprune.repmax.problem.relaxation import Tangent
from tokenprune.repmax.proof import node, verification
from tokenprune.repmax.proof import search as bnb

CLOUDS = some_clouds(48) + some_clouds(8, n=7, k=3)


def caught(statement: Callable[[Cloud], None]) -> bool:
    """Whether the statement fails on any of the clouds."""
    for cloud in CLOUDS:
        try:
            statement(cloud)
        except (AssertionError, RuntimeError, ValueError, IndexError):
            return True
    return False


def forward_nearest(matrix: Array, linear: Array, k: int, first: int) -> Array:
    """A greedy that picks the nearest point instead of the farthest."""
    order, gains = [first], matrix[first].copy()
    for _ in range(k - 1):
        gains[order] = np.inf
        order.append(int(gains.argmin()))
        gains = gains + matrix[order[-1]]
    return np.array(order)


def forward_last_only(matrix: Array, linear: Array, k: int, first: int) -> Array:
    """A greedy that looks only at the point picked last."""
    order = [first]
    for _ in range(k - 1):
        gains = matrix[order[-1]].copy()
        gains[order] = -np.inf
        order.append(int(gains.argmax()))
    return np.array(order)


def gains_without_pair(matrix: Array, gains: Array, members: Array, others: Array) -> Array:
    """Swap gains that forget the distance between the two."""
    return np.asarray(gains[others][:, None] - gains[members][None])


def gains_wrong_sign(matrix: Array, gains: Array, members: Array, others: Array) -> Array:
    """Swap gains that add the distance between the two."""
    return np.asarray(gains[others][:, None] - gains[members][None] + matrix[np.ix_(others, members)])


def small_bound(original: Callable[..., Tangent]) -> Callable[..., Tangent]:
    """A tangent bound that is a little too small: the k largest entries without the largest's lead."""

    def tangent_at(matrix: Array, linear: Array, k: int, z: Array, gradient: Array | None = None) -> Tangent:
        honest = original(matrix, linear, k, z, gradient)
        lead = float(np.ptp(honest.gradient)) if honest.gradient.size else 0.0
        return Tangent(honest.bound - 0.5 * lead, honest.value, honest.z, honest.gradient)

    return tangent_at


def unshifted_value(original: Callable[..., Tangent]) -> Callable[..., Tangent]:
    """A bound that takes F(z) for its maximum, as one does who trusts a solver to have converged."""

    def tangent_at(matrix: Array, linear: Array, k: int, z: Array, gradient: Array | None = None) -> Tangent:
        honest = original(matrix, linear, k, z, gradient)
        return Tangent(honest.value, honest.value, honest.z, honest.gradient)

    return tangent_at


def eager(tangent: Tangent, places: int) -> tuple[Array, Array]:
    """Reduced costs counted twice."""
    g, ordered = tangent.gradient, np.sort(tangent.gradient)
    inside = tangent.bound - 2.0 * np.maximum(ordered[g.size - places] - g, 0.0)
    outside = tangent.bound - 2.0 * np.maximum(g - ordered[g.size - places - 1], 0.0)
    return inside, outside


def eager_by_one(tangent: Tangent, places: int) -> tuple[Array, Array]:
    """Fixing rule that compares with the wrong entry of the sorted gradient."""
    g, ordered = tangent.gradient, np.sort(tangent.gradient)
    inside = tangent.bound - np.maximum(ordered[min(g.size - places + 1, g.size - 1)] - g, 0.0)
    outside = tangent.bound - np.maximum(g - ordered[max(g.size - places - 2, 0)], 0.0)
    return inside, outside


def reversed_order(classes: Array, ones: Array, zeros: Array) -> tuple[Array, Array]:
    """Clones completed in both directions at once."""
    ones, zeros = ones.copy(), zeros.copy()
    for place in np.flatnonzero(ones):
        ones |= classes == classes[place]
    for place in np.flatnonzero(zeros):
        zeros |= (classes == classes[place]) & ~ones
    return ones, zeros


def trusting(*_: Any) -> bool:
    return True


def test_the_clouds_do_not_fail_the_real_code() -> None:
    for statement in (
        statements.value_is_the_pair_sum,
        statements.greedy_keeps_its_share,
        statements.swaps_end_in_a_local_optimum,
        statements.swap_gains_are_differences,
        statements.heuristics_stay_below_and_bounds_above,
        statements.every_iterate_bounds_the_optimum,
        statements.progress_encloses_the_optimum,
        statements.exact_equals_enumeration,
        statements.exclusion_bounds_hold,
        statements.certificates_verify_and_tampering_shows,
        statements.lies_do_not_verify,
    ):
        assert not caught(statement), statement.__name__


@pytest.mark.parametrize("wrong", [forward_nearest, forward_last_only])
def test_wrong_greedy_is_caught(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "forward", wrong)
    assert caught(statements.greedy_keeps_its_share)


@pytest.mark.parametrize("wrong", [gains_without_pair, gains_wrong_sign])
def test_wrong_swap_gain_is_caught(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_search, "swap_gains", wrong)
    monkeypatch.setattr(statements, "swap_gains", wrong)
    assert caught(statements.swap_gains_are_differences)
    assert caught(statements.swaps_end_in_a_local_optimum)


@pytest.mark.parametrize("mutation", [small_bound, unshifted_value])
def test_bound_that_is_too_small_is_caught(mutation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutation(relaxation.tangent_at)
    for module in (relaxation, certificate, statements):
        monkeypatch.setattr(module, "tangent_at", wrong)
    assert caught(statements.every_iterate_bounds_the_optimum)
    assert caught(statements.heuristics_stay_below_and_bounds_above)


def test_missing_gradient_entry_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaxation, "top_sum", lambda g, k: float(np.sort(g)[-k:].sum() - np.ptp(g) * 0.3))
    assert caught(statements.every_iterate_bounds_the_optimum)


@pytest.mark.parametrize("wrong", [eager, eager_by_one])
def test_eager_fixing_is_caught(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "exclusion_bounds", wrong)
    assert caught(statements.exclusion_bounds_hold)


def test_eager_fixing_in_the_search_is_caught_by_its_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnb, "exclusion_bounds", eager)
    assert caught(statements.certificates_verify_and_tampering_shows)


def test_a_shift_that_is_too_large_is_refused_and_without_the_test_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = shift.residual_shift
    monkeypatch.setattr(bnb, "residual_shift", lambda matrix: 5.0 * honest(matrix))
    assert not caught(statements.exact_equals_enumeration)  # the Cholesky test refuses it
    monkeypatch.setattr(bnb, "is_concave", trusting)
    assert caught(statements.certificates_verify_and_tampering_shows)


def test_wrong_order_of_clones_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnb, "close_under_order", reversed_order)
    monkeypatch.setattr(node, "close_under_order", reversed_order)
    assert caught(statements.exact_equals_enumeration) or caught(statements.certificates_verify_and_tampering_shows)


def test_a_trusting_verifier_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "is_concave", trusting)
    assert caught(statements.lies_do_not_verify)


def test_a_wrong_mean_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordered instead of unordered pairs in the divisor."""
    monkeypatch.setattr(objective.Problem, "pairs", property(lambda self: max(1, self.k * self.k // 2)))
    assert caught(statements.exact_equals_enumeration)


def test_a_solver_that_stops_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy passed off as optimal."""
    monkeypatch.setattr(bnb.Search, "_improve_start", lambda self: self._heap.clear())
    monkeypatch.setattr(exact, "_FEW_SUBSETS", 0)
    assert caught(statements.exact_equals_enumeration)
