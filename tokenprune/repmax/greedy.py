"""Greedy RepMax: stage 2 of TrimTokenator."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.arguments import check_seed
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Seed, check_choice, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import EQUIVARIANT, PLAIN, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import all_finite, pick_each
from tokenprune.kernels.choose import Route
from tokenprune.kernels.images import Start as FirstPick
from tokenprune.kernels.ties import TIED, lowest_of
from tokenprune.repmax.problem.distances import Array, Distance, DistanceOrMatrix, Features, distance_matrix
from tokenprune.repmax.problem.inputs import check_tensor
from tokenprune.repmax.problem.objective import Indices, Problem, check_k

StartName = Literal["farthest_mean", "pair", "first", "random"]
Start: TypeAlias = StartName | int


@overload
def greedy_repmax(
    x: Tensor, k: int, *, distance: DistanceOrMatrix = "cosine", start: Start = "farthest_mean", seed: int = 0
) -> Tensor: ...
@overload
def greedy_repmax(
    x: NDArray[Any], k: int, *, distance: DistanceOrMatrix = "cosine", start: Start = "farthest_mean", seed: int = 0
) -> Indices: ...
def greedy_repmax(
    x: Features, k: int, *, distance: DistanceOrMatrix = "cosine", start: Start = "farthest_mean", seed: int = 0
) -> Tensor | Indices:
    r"""Pick k of n points one by one, each time the one with the largest summed distance to those picked.

    $G_{i+1}=G_i\cup\{\arg\max_{v\notin G_i}\sum_{g\in G_i} d(v,g)\}$, ties to the lowest index. For cosine this is
    the point with the smallest dot product with the running sum: one matrix product, then one row sum per step.

    Guarantee (docs, "How good is greedy?"): for every start and every distance offered here the mean pairwise
    distance is at least $B(k)=1-\prod_{i<k}(1-\frac{i}{(i+1)k})$ times the best possible, and at least 1/2 of it for
    the metrics euclidean and angular. A general "precomputed" matrix has neither unless it is of that kind.

    Source: TrimTokenator (arXiv 2509.00320), Greedy RepMax. The default start, the point that is farthest from the
    others on average, is that of a third-party re-implementation; the paper's abstract does not say.

    Args:
        x: (n, d) features, or (n, n) distances with distance="precomputed". A torch tensor is handled on its own
            device, in float64 if it is float64 and in float32 otherwise, without waiting for the device in the
            loop; a NumPy array is handled in float64.
        k: number of points, 0..n.
        distance: "cosine" (default), "euclidean", "sqeuclidean", "angular" or "precomputed".
        start: the first point. "farthest_mean" (default): largest mean distance to all others. "pair": an end of
            the farthest pair, whose other end is picked next. "first": row 0. "random": drawn with `seed`. An int:
            that row.
        seed: for start="random".

    Returns:
        int64 (k,) in pick order; a torch tensor on x's device, or a NumPy array for NumPy input.

    Raises:
        TypeError: for an x that holds no real numbers, or a k or start of the wrong type.
        ValueError: for k or start out of range, an unknown distance, or NaN or infinity in x.

    Examples:
        >>> greedy_repmax(np.array([[0.0], [1.0], [5.0], [7.0]]), 2, distance="euclidean")
        array([3, 0])
        >>> greedy_repmax(torch.eye(3), 2, start=1)
        tensor([1, 0])
    """
    check_seed("greedy_repmax", seed)
    if isinstance(x, Tensor):
        check_tensor(x, "greedy_repmax", "x")
        if x.ndim != 2:
            raise ValueError(f"greedy_repmax: x must be two-dimensional (n, d), got shape {tuple(x.shape)}")
        return greedy_repmax_batched(x[None], k, distance=distance, start=start, seed=seed)[0]
    matrix = distance_matrix(x, distance, owner="greedy_repmax")
    n = matrix.shape[0]
    check_k(k, n, "greedy_repmax")
    check_start(start, n, "greedy_repmax")
    return forward(matrix, np.zeros(n), k, first_of(matrix, start, seed))


def greedy_repmax_batched(
    x: Tensor, k: int, *, distance: DistanceOrMatrix = "cosine", start: Start = "farthest_mean", seed: int = 0
) -> Tensor:
    """`greedy_repmax` for several images of one size at once; the answers equal those of a loop.

    Args:
        x: (b, n, d) features, or (b, n, n) distances with distance="precomputed".
        k: number of points, 0..n.
        distance: see `greedy_repmax`.
        start: see `greedy_repmax`; the same rule for every image.
        seed: for start="random".

    Returns:
        int64 (b, k) in pick order, on x's device.

    Examples:
        >>> greedy_repmax_batched(torch.eye(3).expand(2, 3, 3), 2)
        tensor([[0, 1],
                [0, 1]])
    """
    check_batch(x, k, distance, "greedy_repmax")
    check_seed("greedy_repmax", seed)
    check_start(start, x.shape[1], "greedy_repmax")
    if k == 0 or len(x) == 0:
        return torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    return torch.stack(_greedy_torch(list(x), [k] * len(x), distance, start, seed, "auto"))


def check_batch(x: Tensor, k: int, distance: str, owner: str) -> None:
    """Raise unless x is a finite real (b, n, d) tensor that k and the distance fit."""
    check_choice(owner, "distance", distance, get_args(DistanceOrMatrix))
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor")
    check_tensor(x, owner, "x")
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(
            f"{owner}: x must have shape (n, d) with n >= 1 and d >= 1, or (b, n, d) for a batch, got {tuple(x.shape)}"
        )
    if distance == "precomputed" and x.shape[1] != x.shape[2]:
        raise ValueError(f"{owner}: with distance='precomputed' x must be square, got shape {tuple(x.shape)}")
    check_k(k, x.shape[1], owner)
    if x.is_floating_point() and not all_finite([x])[0]:  # the only wait for the device
        raise ValueError(f"{owner}: x holds NaN or infinity; find where the tokens are made")


def check_start(start: object, n: int | None, owner: str) -> None:
    """Raise unless `start` is one of the names or an index (below n, when n is known)."""
    names = ", ".join(map(repr, get_args(StartName)))
    if isinstance(start, (str, bool)) or not isinstance(start, (int, np.integer)):
        if isinstance(start, str) and start in get_args(StartName):
            return
        kind = ValueError if isinstance(start, str) else TypeError
        raise kind(f"{owner}: start must be one of {names} or the index of a point, got {start!r}")
    if start < 0 or (n is not None and start >= n):
        limit = "0 or more" if n is None else f"in 0..{n - 1}"
        raise ValueError(f"{owner}: start={start} is no point; an index must be {limit}")


_FIRST: dict[str, FirstPick] = {"farthest_mean": "sum", "pair": "max"}


def _greedy_torch(
    images: Sequence[Tensor], keeps: Sequence[int], distance: DistanceOrMatrix, start: Start, seed: int, route: Route
) -> list[Tensor]:
    starts = [_FIRST[start] if start in _FIRST else _fixed_first(start, len(x), seed) for x in images]
    with torch.no_grad():
        return pick_each([x.detach() for x in images], keeps, distance=distance, starts=starts, route=route)


def _fixed_first(start: Start, n: int, seed: int) -> int:
    if start == "random":
        return int(np.random.default_rng(seed).integers(n))
    return 0 if isinstance(start, str) else int(start)


def first_of(matrix: Array, start: Start, seed: int = 0) -> int:
    """The first point that `start` means, for a float64 distance matrix."""
    if start == "farthest_mean":
        return lowest_of(matrix.sum(axis=1), TIED * len(matrix) * float(matrix.max()))
    if start == "pair":
        return lowest_of(matrix.max(axis=1), TIED * float(matrix.max()))
    return _fixed_first(start, matrix.shape[0], seed)


def forward(matrix: Array, linear: Array, k: int, first: int) -> Indices:
    """Greedy picks from `first` on a float64 matrix, with gain_v = sum of distances to the picked + linear_v."""
    order = np.empty(k, dtype=np.int64)
    gains = linear.copy()
    pick, slack = first, TIED * float(matrix.max(initial=0.0))
    for step in range(k):
        if step:
            pick = lowest_of(gains, slack * step)
        order[step] = pick
        gains += matrix[pick]
        gains[pick] = -np.inf
    return order


def greedy_for(problem: Problem) -> Indices:
    """Greedy for a `Problem` with its linear term; the start is farthest on average, in the same sense."""
    if problem.k == 0:
        return np.empty(0, dtype=np.int64)
    others = max(1, problem.n - 1)
    average = problem.matrix.sum(axis=1) * ((problem.k - 1) / (2.0 * others)) + problem.linear
    slack = TIED * problem.k * float(problem.matrix.max(initial=0.0))
    return forward(problem.matrix, problem.linear, problem.k, lowest_of(average, slack))


@strategy("greedy_repmax", paper="TrimTokenator, arXiv 2509.00320 (stage 2)")
class GreedyRepMax(Stage):
    """Keep tokens with a large mean pairwise distance, picked greedily: stage 2 of TrimTokenator (arXiv 2509.00320).

    Definition and guarantee: see `greedy_repmax`.

    Deviations: the paper's abstract names the objective and the greedy; distance and start are those of a
    third-party re-implementation.

    Args:
        keep: int, a number of tokens, or float in (0, 1], a share of the image's original tokens.
        distance: "cosine" (default), "euclidean", "sqeuclidean" or "angular".
        start: "farthest_mean" (default), "pair", "first", "random", or the row of the first token.
        seed: for start="random".

    Examples:
        >>> tokens = Tokens(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]))
        >>> selection = GreedyRepMax(keep=2).select(tokens)
        >>> selection.indices, selection.order
        (tensor([0, 2]), tensor([2, 0]))
    """

    keep: Keep
    distance: Distance = "cosine"
    start: Start = "farthest_mean"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_start(self.start, None, "GreedyRepMax")
        if not isinstance(self.start, str):
            object.__setattr__(self, "start", int(self.start))

    @property
    def promises(self) -> frozenset[Promise]:
        """A start that names a row depends on the order of the tokens."""
        return EQUIVARIANT if self.start in ("farthest_mean", "pair") else PLAIN

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Pick greedily in all images side by side."""
        for n in {tokens.n for tokens in batch}:
            check_start(self.start, n, "GreedyRepMax")
        keeps = [self.count(tokens) for tokens in batch]
        orders = _greedy_torch([tokens.visual for tokens in batch], keeps, self.distance, self.start, self.seed, "auto")
        return [Choice.picked(order) for order in orders]
