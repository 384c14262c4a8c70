"""Fixed constructions that attain the guarantees, so that nobody can improve or weaken them by accident."""

import numpy as np
import pytest

from tests.properties.repmax.clouds import Array, best_sum, greedy_share, reference_sum
from tokenprune.repmax import certify, exact_repmax, greedy_repmax, local_search_repmax, pair_sum, token_cloud


def simplex_pair(k: int) -> Array:
    """Two regular k-simplices, common centroid, orthogonal spaces, squared sides 1 and (k+1)/(k-1)."""
    corners = (np.eye(k) - 1.0 / k) / np.sqrt(2.0)
    x = np.zeros((2 * k, 2 * k))
    x[:k, :k] = corners
    x[k:, k:] = corners * np.sqrt((k + 1) / (k - 1))
    return x


@pytest.mark.parametrize("k", [2, 3, 4, 6, 8])
def test_simplex_pair_is_a_fixed_point_that_attains_the_swap_guarantee(k: int) -> None:
    x = simplex_pair(k)
    small, large = np.arange(k), np.arange(k, 2 * k)
    assert local_search_repmax(x, start=small, distance="sqeuclidean").tolist() == small.tolist()
    best = exact_repmax(x, k, distance="sqeuclidean")
    ratio = pair_sum(x, small, distance="sqeuclidean") / pair_sum(x, large, distance="sqeuclidean")
    assert best.value * k * (k - 1) / 2 == pytest.approx(pair_sum(x, large, distance="sqeuclidean"), rel=1e-9)
    assert ratio == pytest.approx((k - 1) / (k + 1), rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_simplex_pair_under_euclidean_distance(k: int) -> None:
    """The same sets give sqrt((k-1)/(k+1)), conjectured to be the worst case for the metric."""
    x = simplex_pair(k)
    small = np.arange(k)
    assert local_search_repmax(x, start=small, distance="euclidean").tolist() == small.tolist()
    best = exact_repmax(x, k, distance="euclidean")
    ratio = pair_sum(x, small, distance="euclidean") / (best.value * k * (k - 1) / 2)
    assert ratio == pytest.approx(np.sqrt((k - 1) / (k + 1)), rel=1e-9)


def test_a_quarter_is_attained_at_k_2() -> None:
    """Three collinear points, squared distance, start in the middle: B(2) = 1/4."""
    x = np.array([[-1.0], [0.0], [1.0]])
    order = greedy_repmax(x, 2, distance="sqeuclidean", start=1)
    assert pair_sum(x, order, distance="sqeuclidean") / 4.0 == greedy_share(2) == 0.25


def test_farthest_on_average_start_can_lose_two_thirds() -> None:
    """k = 2, squared distance: almost all mass at the centre, s a little beyond the ends of the best pair."""
    ends = np.array([[0.5, np.sqrt(3) / 2], [0.5, -np.sqrt(3) / 2]])
    x = np.concatenate([np.array([[1.01, 0.0]]), ends, np.zeros((400, 2))])
    matrix = ((x[:, None] - x[None]) ** 2).sum(-1)
    order = greedy_repmax(x, 2, distance="sqeuclidean")
    ratio = reference_sum(matrix, order) / float(matrix.max())
    assert order[0] == 0
    assert 1 / 3 < ratio < 0.36


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "sqeuclidean", "angular"])
def test_certified_gap_after_swaps_is_at_most_two_over_k(distance: str) -> None:
    for k in (4, 8, 16, 32):
        x = token_cloud("isotropic", 80, 128, seed=k)
        found = local_search_repmax(x, k, distance=distance)  # type: ignore[call-overload]
        assert certify(x, found, distance=distance, effort="convex").gap <= 2.0 / k  # type: ignore[arg-type]


def test_greedy_share_values() -> None:
    shares = [greedy_share(k) for k in (2, 3, 4, 8, 64)]
    assert shares == pytest.approx([0.25, 0.352, 0.408, 0.501, 0.606], abs=6e-4)


def test_rhombus_local_optimum_is_below_the_cloud_mean() -> None:
    """What is not true: an optimum inside mean of at least the cloud's mean does not follow from 1-swap optimality."""
    matrix = np.array([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 3.0], [1.0, 1.0, 3.0, 0.0]])
    kept = local_search_repmax(matrix, start=[0, 1], distance="precomputed")
    assert kept.tolist() == [0, 1]
    assert matrix[0, 1] < matrix[np.triu_indices(4, 1)].mean()
    assert best_sum(matrix, 2) == 3.0
