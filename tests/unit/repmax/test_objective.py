"""Values: the identities of the objective, the random expectation, gaps."""

from typing import Any

import numpy as np
import pytest

from tests.properties.repmax.clouds import DISTANCES, some_clouds
from tokenprune.repmax import mean_pairwise_distance, pair_sum, random_expectation, token_cloud
from tokenprune.repmax.problem.objective import normalised_gap, relative_gap


def test_identities() -> None:
    """cosine: (k(k-1) + sum |u|^2 - |sum u|^2)/2; squared euclidean: k times the scatter."""
    x = np.random.default_rng(0).normal(size=(30, 7))
    x[4] = 0.0
    members = np.array([1, 4, 7, 8, 20])
    chosen = x[members]
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-300)
    cosine = (5 * 4 + (unit**2).sum() - (unit.sum(0) ** 2).sum()) / 2
    assert pair_sum(x, members) == pytest.approx(cosine, rel=1e-12)
    scatter = 5 * ((chosen - chosen.mean(0)) ** 2).sum()
    assert pair_sum(x, members, distance="sqeuclidean") == pytest.approx(scatter, rel=1e-12)
    assert mean_pairwise_distance(x, members) == pytest.approx(cosine / 10, rel=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_random_expectation_is_the_mean_over_subsets(distance: Any) -> None:
    for cloud in some_clouds(12, distances=(distance,)):
        whole = mean_pairwise_distance(cloud.x, distance=distance)
        assert random_expectation(cloud.x, distance=distance) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_small_sets() -> None:
    x = np.eye(3)
    assert pair_sum(x, []) == 0.0
    assert mean_pairwise_distance(x, [1]) == 0.0
    assert mean_pairwise_distance(x) == 1.0
    assert random_expectation(x[:1]) == 0.0


def test_precomputed_takes_rows_and_columns() -> None:
    matrix = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0)))
    assert pair_sum(matrix, [3, 0], distance="precomputed") == 3.0


@pytest.mark.parametrize("indices", [[0, 0], [3], [-1], [[0, 1]], [0.5, 1.0]])
def test_bad_indices(indices: Any) -> None:
    with pytest.raises(ValueError, match="pair_sum: indices must be"):
        pair_sum(np.eye(3), indices)


def test_gaps() -> None:
    assert relative_gap(0.0, 0.0) == 0.0
    assert relative_gap(3.0, 4.0) == 0.25
    assert relative_gap(-4.0, -2.0) == 1.0
    assert normalised_gap(3.0, 4.0, 2.0) == 0.5
    assert normalised_gap(1.0, 1.0, 1.0) == 0.0


def test_clouds_are_reproducible() -> None:
    assert (token_cloud("dups", 20, 8, seed=1) == token_cloud("dups", 20, 8, seed=1)).all()
    assert len(np.unique(token_cloud("dups", 40, 8), axis=0)) < 40
    with pytest.raises(ValueError, match="kind must be one of"):
        token_cloud("real", 20, 8)  # type: ignore[arg-type]
