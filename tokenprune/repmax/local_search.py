"""1-swap local search: from any set, exchange one member for one non-member while that helps."""

from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.arguments import check_int, check_seed
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Count, Seed, check_choice, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import EQUIVARIANT, PLAIN, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.repmax.greedy import greedy_for
from tokenprune.repmax.problem.distances import Array, Distance, DistanceOrMatrix, Features
from tokenprune.repmax.problem.objective import Indices, Problem, Quality, check_indices, count_rows, prepare
from tokenprune.repmax.reverse import backward

StartRule = Literal["greedy", "reverse", "random"]
Improvement = Literal["best", "first"]

# A swap must gain more than this share of the largest gain in sight, so that rounding cannot make the search cycle.
_SWAP_TOLERANCE = 1e-12


@overload
def local_search_repmax(
    x: Tensor,
    k: int | None = None,
    *,
    distance: DistanceOrMatrix = "cosine",
    start: object = "greedy",
    improvement: Improvement = "best",
    max_swaps: int | None = None,
    seed: int = 0,
    quality: Quality | None = None,
) -> Tensor: ...
@overload
def local_search_repmax(
    x: NDArray[Any],
    k: int | None = None,
    *,
    distance: DistanceOrMatrix = "cosine",
    start: object = "greedy",
    improvement: Improvement = "best",
    max_swaps: int | None = None,
    seed: int = 0,
    quality: Quality | None = None,
) -> Indices: ...
def local_search_repmax(
    x: Features,
    k: int | None = None,
    *,
    distance: DistanceOrMatrix = "cosine",
    start: object = "greedy",
    improvement: Improvement = "best",
    max_swaps: int | None = None,
    seed: int = 0,
    quality: Quality | None = None,
) -> Tensor | Indices:
    r"""Exchange one member s for one non-member o while the pair sum grows.

    The gain of a swap is $g_o-g_s-d(o,s)$ with $g_v=\sum_{j\in S}d(v,j)$. At the end no swap gains, and then for every
    distance of this package $f(S)\ge\frac{k-1}{k+1}f(\mathrm{opt})$, which is tight for every k, and
    $f(S)\ge(1-\frac2k)$ times the convex bound: the certified gap is at most 2/k (docs, "How good is greedy?"). With
    `max_swaps` or `quality` these two statements do not hold.

    Args:
        x: (n, d) features, or (n, n) distances with distance="precomputed". Computed in float64 on the CPU.
        k: size of the set, 0..n; may be left out when `start` is a set.
        distance: "cosine" (default), "euclidean", "sqeuclidean", "angular" or "precomputed".
        start: "greedy" (default), "reverse", "random" (drawn with `seed`), or the indices of a set.
        improvement: "best": the swap of largest gain, ties to the lowest (o, s); "first": the first that gains.
        max_swaps: stop after so many swaps; None for no limit.
        seed: for start="random".
        quality: (n,) linear term; value = mean pairwise distance + mean quality.

    Returns:
        int64 (k,) ascending; a torch tensor on x's device, or a NumPy array for NumPy input.

    Raises:
        TypeError: for wrong types.
        ValueError: for k out of range, a start that is no set of k points, or NaN or infinity in x.

    Examples:
        >>> cloud = np.array([[0.0], [1.0], [5.0], [6.0]])
        >>> local_search_repmax(cloud, start=[1, 2], distance="euclidean")
        array([0, 3])
    """
    owner = "local_search_repmax"
    check_choice(owner, "improvement", improvement, get_args(Improvement))
    if k is None:
        if isinstance(start, str):
            raise ValueError(f"{owner}: k is missing; only a start set tells it, start={start!r} does not")
        k = check_indices(start, count_rows(x, owner), owner, name="start").size
    check_seed(owner, seed)
    if max_swaps is not None:
        check_int(owner, "max_swaps", max_swaps)
    problem = prepare(x, k, distance=distance, quality=quality, owner=owner)
    first = _start_set(problem, start, seed, owner)
    return like(x, swap_search(problem, first, improvement=improvement, max_swaps=max_swaps))


def _start_set(problem: Problem, start: object, seed: int, owner: str) -> Indices:
    if isinstance(start, str):
        check_choice(owner, "start", start, get_args(StartRule))
        if start == "greedy":
            return greedy_for(problem)
        if start == "reverse":
            return backward(problem.matrix, problem.linear, problem.k)
        return np.random.default_rng(seed).permutation(problem.n)[: problem.k].astype(np.int64)
    chosen = check_indices(start, problem.n, owner, name="start")
    if chosen.size != problem.k:
        raise ValueError(f"{owner}: start holds {chosen.size} points but k is {problem.k}")
    return chosen


def like(x: Features, indices: Indices) -> Tensor | Indices:
    """`indices` as a tensor on x's device when x is a tensor, else as they are."""
    return torch.from_numpy(indices).to(x.device) if isinstance(x, Tensor) else indices


def swap_gains(matrix: Array, gains: Array, members: Indices, others: Indices) -> Array:
    """(others, members): what the pair sum plus linear term gains from each exchange; gains_v = sum over S + linear."""
    result: Array = gains[others][:, None] - gains[members][None] - matrix[np.ix_(others, members)]
    return result


def swap_search(
    problem: Problem, start: Indices, *, improvement: Improvement = "best", max_swaps: int | None = None
) -> Indices:
    """1-swap local search on a `Problem` from a set of k points; ascending indices."""
    matrix, inside = problem.matrix, np.zeros(problem.n, dtype=np.bool_)
    inside[start] = True
    gains = matrix[start].sum(axis=0) + problem.linear
    swaps = 0
    while max_swaps is None or swaps < max_swaps:
        members, others = np.flatnonzero(inside), np.flatnonzero(~inside)
        if members.size == 0 or others.size == 0:
            break
        table = swap_gains(matrix, gains, members, others)
        tolerance = _SWAP_TOLERANCE * float(np.abs(gains).max())
        # The first of the exchanges that rounding cannot tell from the best, or the first that is one at all.
        enough = table >= table.max() - tolerance if improvement == "best" else table > tolerance
        flat = int(enough.argmax())
        row, column = divmod(flat, members.size)
        if table[row, column] <= tolerance:
            break
        new, old = others[row], members[column]
        inside[new], inside[old] = True, False
        gains += matrix[new] - matrix[old]
        swaps += 1
    return np.flatnonzero(inside).astype(np.int64)


@strategy("local_search_repmax", paper="objective of TrimTokenator, arXiv 2509.00320 (stage 2); the swaps are ours")
class LocalSearchRepMax(Stage):
    """Greedy RepMax improved by 1-swap local search; within (k-1)/(k+1) of the best mean pairwise distance.

    Definition and guarantee: see `local_search_repmax`. Runs on the CPU in float64 (0 to 50 swaps, a few
    milliseconds for 576 tokens).

    Args:
        keep: int, a number of tokens, or float in (0, 1], a share of the image's original tokens.
        distance: "cosine" (default), "euclidean", "sqeuclidean" or "angular".
        start: "greedy" (default), "reverse" or "random".
        improvement: "best" (default) or "first".
        max_swaps: stop after so many swaps; None (default) for no limit. The guarantee needs None.
        seed: for start="random".

    Examples:
        >>> tokens = Tokens(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]))
        >>> LocalSearchRepMax(keep=2).select(tokens).indices
        tensor([0, 2])
    """

    keep: Keep
    distance: Distance = "cosine"
    start: StartRule = "greedy"
    improvement: Improvement = "best"
    max_swaps: Count | None = None
    seed: Seed = 0

    @property
    def promises(self) -> frozenset[Promise]:
        """What swaps come first, and a random start, depend on the order of the tokens."""
        return EQUIVARIANT if self.start != "random" and self.improvement == "best" else PLAIN

    def choose(self, tokens: Tokens) -> Choice:
        """Choose in float64 on the CPU."""
        indices = local_search_repmax(
            tokens.visual,
            self.count(tokens),
            distance=self.distance,
            start=self.start,
            improvement=self.improvement,
            max_swaps=self.max_swaps,
            seed=self.seed,
        )
        return Choice(indices)
