"""Exact RepMax: the best set, with proof, or the best found with a bound when time runs out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from tokenprune.arguments import LARGEST, check_real
from tokenprune.core.budget import Keep
from tokenprune.core.fields import check_choice, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import PLAIN, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.repmax.greedy import greedy_for
from tokenprune.repmax.local_search import swap_search
from tokenprune.repmax.problem.distances import Distance, DistanceOrMatrix, Features
from tokenprune.repmax.problem.objective import Indices, Problem, Quality, normalised_gap, prepare, relative_gap
from tokenprune.repmax.proof.enumeration import enumerate_best, subsets
from tokenprune.repmax.proof.milp import solve_milp
from tokenprune.repmax.proof.search import Progress, Search

Solver = Literal["auto", "enumerate", "ilp", "bnb"]

_FEW_SUBSETS = 20_000  # up to here trying all is as fast as anything


@dataclass(frozen=True, eq=False)
class ExactResult:
    """What `exact_repmax` found and proved. Values are means over pairs (plus the mean quality, where given).

    Attributes:
        indices: int64 (k,) ascending, NumPy.
        value: mean pairwise distance of the set.
        upper_bound: no k-subset exceeds this.
        random_value: exact expectation over random k-subsets.
        status: "optimal" when the gap was closed to the tolerance asked for, else "feasible".
        solver: which solver ran: "enumerate", "ilp" or "bnb".
        nodes: nodes of the search tree; for "enumerate" the number of subsets.
        seconds: wall time, distance matrix included.
    """

    indices: Indices
    value: float
    upper_bound: float
    random_value: float
    status: Literal["optimal", "feasible"]
    solver: str
    nodes: int
    seconds: float

    @property
    def optimal(self) -> bool:
        """Whether the set is proved to be the best one."""
        return self.status == "optimal"

    @property
    def gap(self) -> float:
        """(upper_bound - value) / upper_bound."""
        return relative_gap(self.value, self.upper_bound)

    @property
    def normalised_gap(self) -> float:
        """(upper_bound - value) / (upper_bound - random_value): 0 is optimal, 1 is no better than random."""
        return normalised_gap(self.value, self.upper_bound, self.random_value)


def exact_repmax(
    x: Features,
    k: int,
    *,
    distance: DistanceOrMatrix = "cosine",
    solver: Solver = "auto",
    time_limit: float | None = None,
    rel_tol: float = 1e-9,
    quality: Quality | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> ExactResult:
    r"""The k of n points with the largest mean pairwise distance, proved, or the best found with a bound.

    "bnb" is a branch and bound on the concave relaxation; sets of 576 tokens usually take it 0.05 to 10 seconds.
    Interrupting it (KeyboardInterrupt) or running out of time gives the best set so far and a valid bound. "enumerate"
    tries all subsets. "ilp" hands an integer linear program to HiGHS, which is feasible up to n of about 40 and as
    accurate as its tolerances (about 1e-6). "auto" enumerates when there are at most 20 000 subsets, else uses "bnb".

    The result is float64 throughout; the bound carries an allowance of about 1e-12 for rounding.

    Args:
        x: (n, d) features of any real dtype, or (n, n) distances with distance="precomputed". A matrix that is not
            of negative type is shifted until it is; expect weak bounds then.
        k: size of the set, 0..n.
        distance: "cosine" (default), "euclidean", "sqeuclidean", "angular" or "precomputed".
        solver: "auto", "enumerate", "ilp" or "bnb".
        time_limit: seconds, None for none.
        rel_tol: relative gap that counts as proved.
        quality: (n,) linear term; the value becomes mean pairwise distance + mean quality. For a mix of alignment a
            with weight w on diversity pass quality = a / w.
        callback: called by "bnb" after every node with a `Progress`.

    Returns:
        An `ExactResult`.

    Raises:
        TypeError: for wrong types.
        ValueError: for k out of range, an unknown distance or solver, NaN or infinity in x.

    Examples:
        >>> result = exact_repmax(np.array([[0.0], [1.0], [5.0], [6.0]]), 2, distance="euclidean")
        >>> result.indices, result.value, result.optimal
        (array([0, 3]), 6.0, True)
    """
    start = time.perf_counter()
    check_choice("exact_repmax", "solver", solver, get_args(Solver))
    check_limits(time_limit, rel_tol, "exact_repmax")
    if callback is not None and not callable(callback):
        raise TypeError(f"exact_repmax: callback must be a function of a Progress, got {type(callback).__name__}")
    problem = prepare(x, k, distance=distance, quality=quality, owner="exact_repmax")
    return solve(problem, solver, time_limit, rel_tol, callback, start)


def check_time_limit(time_limit: object, owner: str) -> None:
    """Raise unless it is None or a number of seconds, 0 or more."""
    if time_limit is not None:
        check_real(owner, "time_limit", time_limit, 0, LARGEST)


def check_limits(time_limit: float | None, rel_tol: float, owner: str) -> None:
    """Raise unless the limits are None or numbers that make sense."""
    check_time_limit(time_limit, owner)
    check_real(owner, "rel_tol", rel_tol, 0, 1)
    if rel_tol == 1:
        raise ValueError(f"{owner}: rel_tol must be below 1, got {rel_tol!r}; 1e-9 is the default")


def solve(
    problem: Problem,
    solver: Solver,
    time_limit: float | None,
    rel_tol: float,
    callback: Callable[[Progress], None] | None,
    start: float,
) -> ExactResult:
    """`exact_repmax` on a `Problem`."""
    if problem.k in (0, problem.n) or solver == "enumerate" or (solver == "auto" and subsets(problem) <= _FEW_SUBSETS):
        found = _enumerate(problem, time_limit)
    elif solver == "ilp":
        found = _ilp(problem, time_limit, rel_tol)
    else:
        found = _bnb(problem, time_limit, rel_tol, callback)
    indices, upper, optimal, nodes, name = found
    value, pairs = problem.total(indices), problem.pairs
    return ExactResult(
        indices=indices,
        value=value / pairs,
        upper_bound=max(value, upper) / pairs,
        random_value=problem.random_total() / pairs,
        status="optimal" if optimal else "feasible",
        solver=name,
        nodes=nodes,
        seconds=time.perf_counter() - start,
    )


_Found = tuple[Indices, float, bool, int, str]


def _enumerate(problem: Problem, time_limit: float | None) -> _Found:
    indices, value, complete = enumerate_best(problem, time_limit=time_limit)
    if complete:
        return indices, value, True, subsets(problem), "enumerate"
    found = _bnb(problem, 0.0, 0.0, None)  # for a bound
    better = max(indices, found[0], key=problem.total)
    return better, found[1], False, 0, "enumerate"


def _ilp(problem: Problem, time_limit: float | None, rel_tol: float) -> _Found:
    indices, upper, optimal, nodes = solve_milp(problem, time_limit=time_limit, rel_gap=rel_tol)
    if indices is None:
        indices = swap_search(problem, greedy_for(problem))
    if not np.isfinite(upper):
        upper = _bnb(problem, 0.0, 0.0, None)[1]
    return indices, upper, optimal, nodes, "ilp"


def _bnb(
    problem: Problem, time_limit: float | None, rel_tol: float, callback: Callable[[Progress], None] | None
) -> _Found:
    search = Search(problem, rel_tol=rel_tol, time_limit=time_limit, callback=callback)
    search.run()
    return search.best, search.upper_bound, search.closed, search.nodes, "bnb"


@strategy("exact_repmax", paper="objective of TrimTokenator, arXiv 2509.00320 (stage 2); the solver is ours")
class ExactRepMax(Stage):
    """Keep the tokens with the largest mean pairwise distance, proved best unless time runs out.

    Definition and solvers: see `exact_repmax`. On the CPU in float64; about 0.05 to 10 seconds for 576 tokens.

    Args:
        keep: int, a number of tokens, or float in (0, 1], a share of the image's original tokens.
        distance: "cosine" (default), "euclidean", "sqeuclidean" or "angular".
        solver: "auto" (default), "enumerate", "ilp" or "bnb".
        time_limit: seconds per image, 60 by default; None for none. The best set found is kept when time runs out; that
            may depend on the machine, so it promises to be deterministic only without a limit.
        rel_tol: relative gap that counts as proved.

    Examples:
        >>> tokens = Tokens(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]))
        >>> ExactRepMax(keep=2).select(tokens).indices
        tensor([0, 2])
    """

    keep: Keep
    distance: Distance = "cosine"
    solver: Solver = "auto"
    time_limit: float | None = 60.0
    rel_tol: float = 1e-9
    example = "exact_repmax(keep=0.5, time_limit=None, rel_tol=0.02)"

    def __post_init__(self) -> None:
        check_limits(self.time_limit, self.rel_tol, "ExactRepMax")
        for name in ("time_limit", "rel_tol"):  # a NumPy number has a text form that `parse` does not read
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None or isinstance(value, int) else float(value))

    @property
    def promises(self) -> frozenset[Promise]:
        """What is found when time runs out depends on the machine."""
        return PLAIN if self.time_limit is None else PLAIN - {"deterministic"}

    def choose(self, tokens: Tokens) -> Choice:
        """Choose in float64 on the CPU."""
        return Choice(torch.from_numpy(self.solve(tokens).indices).to(tokens.visual.device))

    def solve(self, tokens: Tokens) -> ExactResult:
        """Choose, and return value, bound and proof status."""
        return exact_repmax(
            tokens.visual,
            self.count(tokens),
            distance=self.distance,
            solver=self.solver,
            time_limit=self.time_limit,
            rel_tol=self.rel_tol,
        )
