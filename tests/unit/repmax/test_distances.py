"""Distances in float64: against the definition pair by pair, and where naive formulas lose their digits."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from tests.properties.repmax.clouds import DISTANCES, some_clouds
from tokenprune.repmax import distance_matrix, negative_type_defect


@pytest.mark.parametrize("distance", DISTANCES)
def test_equals_the_definition(distance: Any) -> None:
    for cloud in some_clouds(12, distances=(distance,)):
        assert distance_matrix(cloud.x, distance) == pytest.approx(cloud.matrix, rel=1e-10, abs=1e-15)


def test_large_cloud_equals_scipy() -> None:
    x = np.random.default_rng(0).normal(size=(90, 300)) + 50.0
    assert distance_matrix(x, "euclidean") == pytest.approx(squareform(pdist(x)), rel=1e-12)
    assert distance_matrix(x, "sqeuclidean") == pytest.approx(squareform(pdist(x, "sqeuclidean")), rel=1e-12)
    assert distance_matrix(x, "cosine") == pytest.approx(squareform(pdist(x, "cosine")), abs=1e-14)


@pytest.mark.parametrize("distance", DISTANCES)
def test_copies_are_at_distance_zero_and_have_equal_rows(distance: Any) -> None:
    x = np.random.default_rng(1).normal(size=(40, 77))
    x[11] = x[3]
    matrix = distance_matrix(x, distance)
    assert matrix[3, 11] == 0.0
    assert (matrix[3] == matrix[11]).all()
    assert (matrix == matrix.T).all()
    assert (np.diagonal(matrix) == 0).all()


def test_small_distances_keep_their_digits() -> None:
    x = np.array([[1.0, 0.0], [1.0, 1e-9], [-1.0, 1e-9]])
    angles = distance_matrix(x, "angular")
    assert angles[0, 1] == pytest.approx(1e-9, rel=1e-9)
    assert np.pi - angles[0, 2] == pytest.approx(1e-9, rel=1e-6)
    far = np.random.default_rng(0).normal(size=(5, 8)) + 1e3
    far[1] = far[0] + 1e-7
    assert distance_matrix(far, "euclidean")[0, 1] == pytest.approx(float(np.linalg.norm(far[0] - far[1])), rel=1e-12)


@pytest.mark.parametrize(("distance", "expected"), [("cosine", 1.0), ("angular", np.pi / 2)])
def test_zero_rows(distance: Any, expected: float) -> None:
    matrix = distance_matrix(np.array([[0.0, 0.0], [0.0, 0.0], [2.0, 1.0]]), distance)
    assert matrix == pytest.approx(expected * (1 - np.eye(3)))


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_extreme_scales(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    assert distance_matrix(x * scale, "cosine") == pytest.approx(distance_matrix(x, "cosine"), abs=1e-14)
    assert distance_matrix(x * scale, "euclidean") / scale == pytest.approx(distance_matrix(x, "euclidean"), rel=1e-12)


def test_overflow_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"overflow float64; scale the tokens down"):
        distance_matrix(np.array([[1e200], [-1e200]]), "sqeuclidean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_dtype_is_lifted_exactly(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]], requires_grad=False).to(dtype)
    assert distance_matrix(x, "euclidean")[0, 1] == np.sqrt(40.0)


@pytest.mark.parametrize(
    ("x", "distance", "error", "message"),
    [
        (np.ones(3), "cosine", ValueError, "two-dimensional"),
        (np.ones((0, 3)), "cosine", ValueError, "n >= 1"),
        (np.array([[1.0, np.nan]]), "cosine", ValueError, "x holds NaN or infinity"),
        (torch.tensor([[1.0, torch.inf]]), "cosine", ValueError, "x holds NaN or infinity"),
        (np.ones((2, 2), dtype=complex), "cosine", TypeError, "real numbers"),
        (torch.ones((2, 2), dtype=torch.complex64), "cosine", TypeError, "real numbers"),
        (np.ones((2, 2)), "manhattan", ValueError, "must be one of 'cosine'.*got 'manhattan'"),
        (np.ones((2, 3)), "precomputed", ValueError, "square"),
        (np.array([[0.0, 1.0], [2.0, 0.0]]), "precomputed", ValueError, "not symmetric"),
        (np.array([[1.0, 1.0], [1.0, 0.0]]), "precomputed", ValueError, "diagonal"),
        (np.array([[0.0, -1.0], [-1.0, 0.0]]), "precomputed", ValueError, "negative entries"),
    ],
)
def test_errors_name_the_problem(x: Any, distance: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"(?s)distance_matrix: .*{message}"):
        distance_matrix(x, distance)


def test_precomputed_matrix_with_float32_noise_is_accepted() -> None:
    matrix = distance_matrix(np.random.default_rng(0).normal(size=(20, 5)), "euclidean").astype(np.float32)
    matrix[2, 3] *= 1 + 1e-7
    result = distance_matrix(matrix, "precomputed")
    assert (result == result.T).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_all_distances_are_of_negative_type(distance: Any) -> None:
    for cloud in some_clouds(18, distances=(distance,)):
        assert negative_type_defect(distance_matrix(cloud.x, distance)) == 0.0


def test_negative_type_is_tested_honestly() -> None:
    """The bipartite graph metric K_{2,3} is a metric but not of negative type."""
    sides = np.array([0, 0, 1, 1, 1])
    matrix = np.where(sides[:, None] == sides[None], 2.0, 1.0) - 2.0 * np.eye(5)
    assert negative_type_defect(matrix) > 0.01
