"""How far each method is from the best possible set, on one image: the numbers behind `tokenprune gap`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tokenprune.repmax.exact import exact_repmax
from tokenprune.repmax.greedy import forward, greedy_for
from tokenprune.repmax.local_search import swap_search
from tokenprune.repmax.problem.distances import Array, Distance, Features, distance_matrix
from tokenprune.repmax.problem.objective import Indices, Problem, normalised_gap, prepare, relative_gap
from tokenprune.repmax.problem.relaxation import relax, tangent_at
from tokenprune.repmax.proof.node import Node
from tokenprune.repmax.reverse import backward
from tokenprune.repmax.rounding import rounded


@dataclass(frozen=True)
class GapRow:
    """One method on one image at one budget.

    Attributes:
        image: names the image.
        n: tokens of the image.
        k: tokens kept.
        distance: which distance.
        method: "random", "first_greedy", "greedy", "reverse_greedy", "greedy+swap", "relax_round" or "exact".
        value: mean pairwise distance of its set.
        best_bound: the lowest proved upper bound on any set of k tokens.
        gap: (best_bound - value) / best_bound; exact when `proved`, else at most this.
        normalised_gap: (best_bound - value) / (best_bound - random expectation).
        tangent_gap: the gap that the set's own tangent certificate proves, one matrix-vector product.
        convex_gap: the gap that the converged relaxation proves.
        proved: whether best_bound is the optimum (relative 1e-9).
        copies: kept tokens that have an exact copy among the kept.
        seconds: to select the set, distance matrix not included; for "exact" to prove.
    """

    image: str
    n: int
    k: int
    distance: str
    method: str
    value: float
    best_bound: float
    gap: float
    normalised_gap: float
    tangent_gap: float
    convex_gap: float
    proved: bool
    copies: int
    seconds: float

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the fields, in order."""
        return [field.name for field in fields(cls)]


def measure_gap(
    x: Features,
    k: int,
    *,
    distance: Distance = "cosine",
    time_limit: float | None = 10.0,
    image: str = "0",
    seed: int = 0,
    others: Mapping[str, Callable[[], Sequence[int]]] | None = None,
) -> list[GapRow]:
    """Select k tokens with every method and measure each against the best bound that can be proved.

    Args:
        x: (n, d) tokens of one image.
        k: how many to keep, 2..n-1.
        distance: which distance.
        time_limit: seconds for the exact solver.
        image: name for the rows.
        seed: of the random subset.
        others: further methods by name, each a function that gives its k tokens.

    Returns:
        One row per method, the exact solver's last.

    Raises:
        ValueError: for k outside 2..n-1, a bad `x`, or one of `others` that does not give k different tokens.

    Examples:
        >>> from tokenprune.repmax import token_cloud
        >>> rows = measure_gap(token_cloud("clusters", 40, 8), 6)
        >>> rows[-1].method, rows[-1].proved, rows[-1].gap < 1e-8
        ('exact', True, True)
    """
    if not 2 <= k < len(x):
        raise ValueError(f"measure_gap: k must be in 2..{len(x) - 1} for {len(x)} tokens, got {k}")
    matrix = distance_matrix(x, distance, owner="measure_gap")
    problem = prepare(x, k, distance=distance, owner="measure_gap")
    result = exact_repmax(x, k, distance=distance, solver="bnb", time_limit=time_limit)
    chosen = _selections(problem, seed, others or {})
    chosen.append(("exact", result.indices, result.seconds))
    best = np.zeros(problem.n)
    best[result.indices] = 1.0
    convex = relax(*Node.root(problem, best).shifted(problem), k, best, steps=400)
    convex_bound = (convex.bound + problem.slack) / problem.pairs
    rows = []
    for method, members, seconds in chosen:
        value = problem.total(members) / problem.pairs
        rows.append(
            GapRow(
                image=image,
                n=problem.n,
                k=k,
                distance=distance,
                method=method,
                value=value,
                best_bound=result.upper_bound,
                gap=relative_gap(value, result.upper_bound),
                normalised_gap=normalised_gap(value, result.upper_bound, result.random_value),
                tangent_gap=relative_gap(value, _tangent_bound(problem, members)),
                convex_gap=relative_gap(value, convex_bound),
                proved=result.optimal,
                copies=_copies(matrix, members),
                seconds=seconds,
            )
        )
    return rows


def _selections(
    problem: Problem, seed: int, others: Mapping[str, Callable[[], Sequence[int]]]
) -> list[tuple[str, Indices, float]]:
    matrix, linear, k = problem.matrix, problem.linear, problem.k
    methods: list[tuple[str, Callable[[], Any]]] = [
        ("random", lambda: np.random.default_rng(seed).permutation(problem.n)[:k]),
        ("first_greedy", lambda: forward(matrix, linear, k, 0)),
        ("greedy", lambda: greedy_for(problem)),
        ("reverse_greedy", lambda: backward(matrix, linear, k)),
        ("greedy+swap", lambda: swap_search(problem, greedy_for(problem))),
        ("relax_round", lambda: rounded(problem)),
        *others.items(),
    ]
    result = []
    for name, run in methods:
        start = time.perf_counter()
        members = np.sort(np.asarray(run())).astype(np.int64)
        if name in others and (np.unique(members).size != k or members.size != k):
            raise ValueError(f"measure_gap: {name} gave {members.size} tokens where {k} different ones were asked for")
        result.append((name, members, time.perf_counter() - start))
    return result


def _tangent_bound(problem: Problem, members: Indices) -> float:
    at_set = np.zeros(problem.n)
    at_set[members] = 1.0
    bound = tangent_at(*Node.root(problem, at_set).shifted(problem), problem.k, at_set).bound
    return (bound + problem.slack) / problem.pairs


def _copies(matrix: Array, members: Indices) -> int:
    """Members that another member is an exact copy of."""
    block = matrix[np.ix_(members, members)] + np.eye(members.size)
    return int((block == 0.0).any(axis=1).sum())
