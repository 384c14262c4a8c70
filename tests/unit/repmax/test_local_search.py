"""Swaps and rounding: starts, limits, errors, strategies."""

from typing import Any

import numpy as np
import pytest
import torch

from tokenprune.core.tokens import Tokens
from tokenprune.repmax import (
    LocalSearchRepMax,
    RelaxRoundRepMax,
    exact_repmax,
    local_search_repmax,
    mean_pairwise_distance,
    relax_round_repmax,
    token_cloud,
)

CLOUD = token_cloud("clusters", 60, 16, seed=4)


@pytest.mark.parametrize("improvement", ["best", "first"])
@pytest.mark.parametrize("start", ["greedy", "reverse", "random", list(range(8))])
def test_every_start_ends_in_a_local_optimum(start: Any, improvement: Any) -> None:
    found = local_search_repmax(CLOUD, 8, start=start, improvement=improvement)
    assert local_search_repmax(CLOUD, start=found).tolist() == found.tolist()
    value = mean_pairwise_distance(CLOUD, found)
    assert value >= exact_repmax(CLOUD, 8).value * 7 / 9


def test_swaps_are_counted() -> None:
    start = list(range(8))
    values = [mean_pairwise_distance(CLOUD, local_search_repmax(CLOUD, start=start, max_swaps=m)) for m in range(5)]
    assert values[0] == mean_pairwise_distance(CLOUD, start)
    assert values == sorted(values)
    assert len(set(values)) == 5


def test_the_first_improvement_is_the_first() -> None:
    """One swap from {0, 1} on a line: 'best' takes the far end, 'first' the first point that gains."""
    x = np.array([[0.0], [1.0], [2.0], [10.0]])
    best = local_search_repmax(x, start=[0, 1], distance="euclidean", max_swaps=1)
    first = local_search_repmax(x, start=[0, 1], distance="euclidean", max_swaps=1, improvement="first")
    assert best.tolist() == [0, 3]
    assert first.tolist() == [0, 2]


def test_torch_in_torch_out() -> None:
    tensor = torch.from_numpy(CLOUD).float()
    for function in (local_search_repmax, relax_round_repmax):
        found = function(tensor, 8)
        assert isinstance(found, torch.Tensor)
        assert found.dtype == torch.int64
        assert found.tolist() == function(tensor.double().numpy(), 8).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [0, 1, 2]}, "start holds 3 points but k is 2"),
        ({"start": [0, 0]}, "start must be unique"),
        ({"start": "best"}, "start must be one of"),
        ({"improvement": "any"}, "improvement must be one of"),
        ({"k": None}, "k is missing"),
        ({"k": 9}, "k must be in"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"local_search_repmax: .*{message}"):
        local_search_repmax(np.eye(4), **({"k": 2} | change))


def test_rounding_edges() -> None:
    assert relax_round_repmax(CLOUD, 0).tolist() == []
    assert relax_round_repmax(CLOUD, 60).tolist() == list(range(60))
    assert len(relax_round_repmax(CLOUD, 1)) == 1
    with pytest.raises(ValueError, match="relax_round_repmax: k must be in"):
        relax_round_repmax(CLOUD, 61)


def test_strategies() -> None:
    tokens = Tokens(torch.from_numpy(CLOUD).float())
    local = LocalSearchRepMax(8, start="reverse", distance="euclidean").select(tokens).indices
    assert torch.equal(local, local_search_repmax(tokens.visual, 8, start="reverse", distance="euclidean"))
    rounded = RelaxRoundRepMax(8, distance="angular").select(tokens).indices
    assert torch.equal(rounded, relax_round_repmax(tokens.visual, 8, distance="angular"))
    assert "equivariant" in LocalSearchRepMax(8).promises
    assert "equivariant" not in LocalSearchRepMax(8, start="random").promises
    with pytest.raises(ValueError, match="LocalSearchRepMax: max_swaps must be"):
        LocalSearchRepMax(8, max_swaps=-1)
