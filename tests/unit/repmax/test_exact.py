"""The exact solver: edge cases, limits, interruption, matrices of other kinds, agreement of the solvers."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.properties.repmax.clouds import DISTANCES, Array, best_sum
from tokenprune.core.tokens import Tokens
from tokenprune.repmax import (
    ExactRepMax,
    distance_matrix,
    exact_repmax,
    greedy_repmax,
    mean_pairwise_distance,
    negative_type_defect,
    token_cloud,
)
from tokenprune.repmax.problem.objective import prepare
from tokenprune.repmax.proof.milp import solve_milp
from tokenprune.repmax.proof.search import Progress, Search


@pytest.mark.parametrize("solver", ["auto", "enumerate", "ilp", "bnb"])
def test_edge_cases(solver: Any) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    nothing = exact_repmax(x, 0, solver=solver)
    assert (nothing.value, nothing.upper_bound, nothing.gap, nothing.optimal) == (0.0, 0.0, 0.0, True)
    assert nothing.indices.shape == (0,)
    one = exact_repmax(x, 1, solver=solver)
    assert (one.value, one.gap, one.optimal, one.indices.size) == (0.0, 0.0, True, 1)
    everything = exact_repmax(x, 6, solver=solver)
    assert everything.indices.tolist() == list(range(6))
    assert everything.value == pytest.approx(mean_pairwise_distance(x))
    equal = exact_repmax(np.ones((6, 3)), 3, solver=solver, distance="euclidean")
    assert (equal.value, equal.gap, equal.optimal) == (0.0, 0.0, True)
    zeros = exact_repmax(np.zeros((9, 3)), 4, solver=solver)
    assert zeros.value == pytest.approx(1.0)
    assert zeros.optimal


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 7}, ValueError, r"k must be in 0\.\.6"),
        ({"k": -1}, ValueError, r"k must be in 0\.\.6"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"solver": "magic"}, ValueError, "solver must be one of"),
        ({"time_limit": -1.0}, ValueError, "time_limit must be"),
        ({"time_limit": np.nan}, ValueError, "time_limit must be"),
        ({"rel_tol": 1.0}, ValueError, "rel_tol must be"),
        ({"quality": np.ones(5)}, ValueError, "quality must have shape"),
        ({"quality": np.full(6, np.nan)}, ValueError, "quality holds NaN"),
        ({"distance": "dot"}, ValueError, "distance must be one of"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"exact_repmax: .*{message}"):
        exact_repmax(np.eye(6), **({"k": 2} | change))


@pytest.mark.parametrize("distance", DISTANCES)
def test_two_solvers_prove_the_same_optimum(distance: Any) -> None:
    """Branch and bound and HiGHS share nothing but the distance matrix."""
    x = token_cloud("clusters", 16, 24, seed=5)
    ours = exact_repmax(x, 5, distance=distance, solver="bnb")
    theirs = exact_repmax(x, 5, distance=distance, solver="ilp", rel_tol=1e-8)
    assert ours.optimal
    assert theirs.optimal
    assert ours.value == pytest.approx(theirs.value, rel=1e-6)
    assert ours.solver == "bnb"
    assert theirs.solver == "ilp"


def test_glover_agrees() -> None:
    problem = prepare(token_cloud("dups", 14, 8), 5, distance="euclidean", owner="test")
    indices, bound, optimal, _ = solve_milp(problem, formulation="glover")
    assert optimal
    assert indices is not None
    best = best_sum(problem.matrix, 5)
    assert problem.total(indices) == pytest.approx(best, rel=1e-6)
    assert bound == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("kind", ["clusters", "aniso", "outliers", "dups"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_proves_clouds_of_image_size(kind: Any, distance: Any) -> None:
    x = token_cloud(kind, 256, 48, seed=1)
    result = exact_repmax(x, 48, distance=distance, time_limit=120.0)
    assert result.optimal
    assert result.gap <= 1.1e-9
    assert result.value == pytest.approx(mean_pairwise_distance(x, result.indices, distance=distance), rel=1e-12)
    assert result.random_value < result.value


def test_out_of_time_gives_a_valid_bound() -> None:
    x = token_cloud("isotropic", 60, 200, seed=0)
    stopped = exact_repmax(x, 15, solver="bnb", time_limit=0.0)
    assert stopped.status == "feasible"
    assert not stopped.optimal
    longer = exact_repmax(x, 15, solver="bnb", time_limit=0.3)
    assert longer.value >= stopped.value
    assert longer.value <= longer.upper_bound <= stopped.upper_bound
    assert stopped.gap > 0
    assert stopped.normalised_gap > stopped.gap
    cut = exact_repmax(x[:30], 10, solver="enumerate", time_limit=0.0)
    assert cut.status == "feasible"
    assert cut.upper_bound >= exact_repmax(x[:30], 10, time_limit=20.0).value
    milp = exact_repmax(x, 15, solver="ilp", time_limit=0.05)
    assert milp.status == "feasible"
    assert milp.upper_bound >= stopped.value


def test_interruption_returns_the_best_with_its_gap() -> None:
    x = token_cloud("isotropic", 60, 200, seed=0)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    result = exact_repmax(x, 15, solver="bnb", callback=stop)
    assert result.status == "feasible"
    assert len(seen) == 3
    assert result.nodes == seen[-1].nodes == 3
    assert seen[-1].open > 0
    assert result.value == pytest.approx(seen[-1].value)
    assert 0 < result.gap < 0.2


@pytest.mark.parametrize("name", ["_expand", "_improve_start"])
def test_interruption_inside_a_step_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    problem = prepare(token_cloud("isotropic", 12, 20), 4, owner="test")
    monkeypatch.setattr(Search, name, interrupt)
    search = Search(problem)
    search.run()
    assert search.interrupted
    assert not search.closed
    assert search.value <= best_sum(problem.matrix, 4) <= search.upper_bound


@pytest.mark.parametrize("seed", range(4))
def test_matrices_that_are_not_of_negative_type(seed: int) -> None:
    matrix = random_matrix(10, seed)
    assert negative_type_defect(matrix) > 0
    for k in (2, 3, 5, 9):
        result = exact_repmax(matrix, k, distance="precomputed", solver="bnb")
        assert result.optimal
        assert result.value * k * (k - 1) / 2 == pytest.approx(best_sum(matrix, k), rel=1e-9)


def random_matrix(n: int, seed: int) -> Array:
    upper = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return upper + upper.T


def test_precomputed_equals_features() -> None:
    x = token_cloud("aniso", 30, 8)
    for distance in DISTANCES:
        features = exact_repmax(x, 8, distance=distance)
        matrix = exact_repmax(distance_matrix(x, distance), 8, distance="precomputed")
        single = distance_matrix(x, distance).astype(np.float32)
        assert matrix.value == pytest.approx(features.value, rel=1e-9)
        assert exact_repmax(single, 8, distance="precomputed").value == pytest.approx(features.value, rel=1e-6)


def test_quality_trades_diversity_for_alignment() -> None:
    """With weight on quality the optimum moves from the most diverse set to the best single tokens."""
    x = token_cloud("clusters", 40, 16)
    quality = np.random.default_rng(0).random(40)
    values = []
    for weight in (0.0, 0.3, 1.0, 100.0):
        result = exact_repmax(x, 6, quality=weight * quality)
        values.append((mean_pairwise_distance(x, result.indices), quality[result.indices].mean()))
    diversity, alignment = zip(*values, strict=True)
    assert list(diversity) == sorted(diversity, reverse=True)
    assert list(alignment) == sorted(alignment)
    assert sorted(result.indices.tolist()) == sorted(np.argsort(-quality)[:6].tolist())


def test_strategy() -> None:
    visual = torch.from_numpy(token_cloud("clusters", 40, 16)).float()
    strategy = ExactRepMax(8, distance="euclidean")
    selection = strategy.select(Tokens(visual))
    expected = exact_repmax(visual, 8, distance="euclidean")
    assert selection.indices.tolist() == expected.indices.tolist()
    assert strategy.solve(Tokens(visual)).value == expected.value
    assert mean_pairwise_distance(visual, greedy_repmax(visual, 8, distance="euclidean"), distance="euclidean") <= (
        expected.value + 1e-12
    )
    assert "deterministic" not in strategy.promises
    assert "deterministic" in ExactRepMax(8, time_limit=None).promises
    with pytest.raises(ValueError, match="ExactRepMax: solver must be one of"):
        ExactRepMax(8, solver="cplex")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ExactRepMax: time_limit must be"):
        ExactRepMax(8, time_limit=-1)
