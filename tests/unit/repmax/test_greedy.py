"""Greedy and reverse greedy: against naive loops, ties, starts, batches, dtypes, errors."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.properties.repmax.clouds import DISTANCES, Array, some_clouds
from tokenprune.core.tokens import Tokens
from tokenprune.repmax import (
    GreedyRepMax,
    ReverseGreedyRepMax,
    distance_matrix,
    greedy_repmax,
    greedy_repmax_batched,
    reverse_greedy_repmax,
    token_cloud,
)


def naive_greedy(matrix: Array, k: int, first: int) -> list[int]:
    picked = [first]
    while len(picked) < k:
        left = [i for i in range(len(matrix)) if i not in picked]
        picked.append(max(left, key=lambda i: (sum(matrix[i, j] for j in picked), -i)))
    return picked[:k]


def naive_reverse(matrix: Array, k: int) -> list[int]:
    kept = list(range(len(matrix)))
    while len(kept) > k:
        kept.remove(min(kept, key=lambda i: (sum(matrix[i, j] for j in kept), -i)))
    return kept


LATTICE = np.random.default_rng(0).integers(-2, 3, size=(14, 3)).astype(np.float64)


@pytest.mark.parametrize("kind", ["numpy", "float64", "float32"])
def test_ties_go_to_the_lowest_index(kind: str) -> None:
    """Squared distances of small integers are exact in every dtype, so all ties are real."""
    matrix = distance_matrix(LATTICE, "sqeuclidean")
    x: Any = LATTICE if kind == "numpy" else torch.from_numpy(LATTICE).to(getattr(torch, kind))
    for k in (1, 4, 9, 14):
        x_matrix = matrix if kind == "numpy" else torch.from_numpy(matrix).to(x.dtype)
        first = int(matrix.sum(1).argmax())
        assert greedy_repmax(x_matrix, k, distance="precomputed").tolist() == naive_greedy(matrix, k, first)
        assert reverse_greedy_repmax(x_matrix, k, distance="precomputed").tolist() == naive_reverse(matrix, k)
    # Distances from the lattice itself: centring is not exact, so only the sizes of the picks are fixed by the ties.
    assert sorted(greedy_repmax(x, 14, distance="sqeuclidean").tolist()) == list(range(14))


def test_all_equal_points_give_the_first_rows() -> None:
    x = np.ones((6, 3))
    assert greedy_repmax(x, 4).tolist() == [0, 1, 2, 3]
    assert greedy_repmax(torch.ones(6, 3), 4, distance="euclidean").tolist() == [0, 1, 2, 3]
    assert reverse_greedy_repmax(x, 4, distance="euclidean").tolist() == [0, 1, 2, 3]
    assert greedy_repmax(np.zeros((6, 3)), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_follows_the_naive_loop(distance: Any, dtype: torch.dtype) -> None:
    x = torch.from_numpy(token_cloud("aniso", 60, 12, seed=2)).to(dtype)
    matrix = distance_matrix(x, distance)
    first = int(matrix.sum(1).argmax())
    assert greedy_repmax(x, 20, distance=distance).tolist() == naive_greedy(matrix, 20, first)
    assert reverse_greedy_repmax(x, 20, distance=distance).tolist() == naive_reverse(matrix, 20)
    assert greedy_repmax(x.double().numpy(), 20, distance=distance).tolist() == naive_greedy(matrix, 20, first)


def test_starts() -> None:
    x = token_cloud("clusters", 40, 8)
    matrix = distance_matrix(x, "euclidean")
    farthest = np.unravel_index(int(matrix.argmax()), matrix.shape)
    for points in (x, torch.from_numpy(x)):
        pair = greedy_repmax(points, 5, distance="euclidean", start="pair").tolist()
        assert pair[:2] == [int(i) for i in farthest]
        assert greedy_repmax(points, 5, distance="euclidean", start="first").tolist() == naive_greedy(matrix, 5, 0)
        assert greedy_repmax(points, 5, distance="euclidean", start=7).tolist() == naive_greedy(matrix, 5, 7)
        drawn = greedy_repmax(points, 1, distance="euclidean", start="random", seed=3).tolist()
        assert drawn == greedy_repmax(points, 1, distance="euclidean", start="random", seed=3).tolist()
    assert len({int(greedy_repmax(x, 1, start="random", seed=s)[0]) for s in range(20)}) > 5


def test_batch_equals_loop_with_ties_too() -> None:
    for distance in DISTANCES:
        images = torch.stack(
            [torch.from_numpy(c.x[:, :1] * np.ones(4)).float() for c in some_clouds(12, distances=(distance,))]
        )
        together = greedy_repmax_batched(images, 5, distance=distance)
        alone = [greedy_repmax(image, 5, distance=distance) for image in images]
        assert torch.equal(together, torch.stack(alone))


def test_types_and_places_are_kept() -> None:
    numpy = greedy_repmax(np.eye(4), 2)
    assert isinstance(numpy, np.ndarray)
    assert numpy.dtype == np.int64
    x = torch.eye(4, requires_grad=True)
    tensor = greedy_repmax(x, 2)
    assert tensor.dtype == torch.int64
    assert not tensor.requires_grad
    assert greedy_repmax(x, 0).shape == (0,)
    assert greedy_repmax_batched(torch.empty(0, 3, 2), 2).shape == (0, 2)
    integers = torch.tensor([[3, 0], [0, 1], [-2, 0]])
    assert greedy_repmax(integers, 2).tolist() == [0, 2]


def test_the_input_is_left_alone() -> None:
    matrix = torch.rand(5, 5).fill_diagonal_(0)
    matrix = matrix + matrix.T
    before = matrix.clone()
    greedy_repmax(matrix, 3, distance="precomputed")
    reverse_greedy_repmax(matrix, 3, distance="precomputed")
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("x", [np.eye(3), torch.eye(3)], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 4}, ValueError, r"k must be in 0\.\.3"),
        ({"k": -1}, ValueError, r"k must be in 0\.\.3"),
        ({"k": 1.0}, TypeError, "k must be an int"),
        ({"k": True}, TypeError, "k must be an int"),
        ({"distance": "dot"}, ValueError, "distance must be one of"),
        ({"start": 3}, ValueError, r"start=3 is no point"),
        ({"start": -1}, ValueError, "start=-1 is no point"),
        ({"start": "middle"}, ValueError, "start must be one of .* got 'middle'"),
        ({"start": 1.0}, TypeError, "start must be one of"),
        ({"start": True}, TypeError, "start must be one of"),
    ],
)
def test_errors(x: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"greedy_repmax: .*{message}"):
        greedy_repmax(x, **({"k": 2} | change))


@pytest.mark.parametrize("function", [greedy_repmax, reverse_greedy_repmax])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_name_the_tensor(function: Any, bad: float) -> None:
    x = np.eye(3)
    x[1, 1] = bad
    for points in (x, torch.from_numpy(x)):
        with pytest.raises(ValueError, match=f"{function.__name__}: x holds NaN or infinity"):
            function(points, 2)


def test_strategies() -> None:
    visual = torch.from_numpy(token_cloud("clusters", 30, 8)).float()
    tokens = Tokens(visual)
    selection = GreedyRepMax(7, distance="euclidean", start="pair").select(tokens)
    assert selection.order is not None
    assert selection.order.tolist() == greedy_repmax(visual, 7, distance="euclidean", start="pair").tolist()
    assert selection.indices.tolist() == sorted(selection.order.tolist())
    assert ReverseGreedyRepMax(0.2).select(tokens).indices.tolist() == reverse_greedy_repmax(visual, 6).tolist()
    assert GreedyRepMax(100).select(tokens).clamped
    assert "equivariant" not in GreedyRepMax(3, start="first").promises
    with pytest.raises(ValueError, match="GreedyRepMax: start=40 is no point"):
        GreedyRepMax(3, start=40).select(tokens)
    with pytest.raises(ValueError, match="GreedyRepMax: distance must be one of"):
        GreedyRepMax(3, distance="precomputed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="GreedyRepMax: start must be one of"):
        GreedyRepMax(3, start="best")  # type: ignore[arg-type]
