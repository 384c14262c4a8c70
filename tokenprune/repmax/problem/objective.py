"""The RepMax objective: mean pairwise distance of a set, with an optional linear quality term."""

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.core.fields import check_choice
from tokenprune.repmax.problem.clones import Classes, clone_classes
from tokenprune.repmax.problem.distances import (
    Array,
    DistanceOrMatrix,
    Features,
    as_float64,
    distance_matrix,
    unit_rows,
)
from tokenprune.repmax.problem.inputs import as_array, check_tensor
from tokenprune.repmax.problem.shift import concavity_margin, is_concave

Quality = NDArray[np.float64] | torch.Tensor
Indices = NDArray[np.int64]

# Rounding allowance of bounds, see Problem.slack: nine times the unit roundoff of float64.
_SLACK = 1e-15
# Largest eigenvalue of the centred matrix, relative to its norm, that still counts as zero (float64 rounding).
_NEGATIVE_TYPE = 1e-10


@dataclass(frozen=True, eq=False)
class Problem:
    r"""Choose k of n: maximise $F(z)=\frac12 z^\top Dz+b^\top z$ over binary z with $\sum z=k$.

    This is the *pair sum* of the set plus a linear term; dividing by `pairs` gives the reported mean:
    `value = mean pairwise distance + mean quality`, hence $b_i=q_i\cdot\text{pairs}/k$.

    Attributes:
        matrix: (n, n) distances, symmetric, zero diagonal.
        linear: (n,) the vector b.
        k: size of the set.
        negative_type: True when F is known to be concave on the plane $\sum z=k$ (all distances of this package).
    """

    matrix: Array
    linear: Array
    k: int
    negative_type: bool

    @property
    def n(self) -> int:
        """Number of points."""
        return int(self.matrix.shape[0])

    @property
    def pairs(self) -> int:
        """Number of unordered pairs in the set, at least 1: the divisor between sum and mean."""
        return max(1, self.k * (self.k - 1) // 2)

    @cached_property
    def classes(self) -> Classes:
        """(n,) lowest index among each point's exact duplicates."""
        return clone_classes(self.matrix, self.linear)

    @cached_property
    def has_clones(self) -> bool:
        """Whether any point has an exact duplicate."""
        return bool((self.classes != np.arange(self.n)).any())

    @cached_property
    def slack(self) -> float:
        """What is added to every bound so that float64 rounding cannot make it too small (relative: about 1e-12).

        A bound adds k entries of Dz + b, each a dot product of n terms with sum |z| <= 2k; a shift is proved concave up
        to `concavity_margin`, which counts at most k times.
        """
        largest = float(self.matrix.max(initial=0.0))
        entry = self.k * largest + float(np.abs(self.linear).max(initial=0.0))
        return _SLACK * self.n * self.k * entry + self.k * concavity_margin(self.n, largest)

    def total(self, indices: Indices) -> float:
        """F of the set: pair sum plus linear term."""
        return float(self.matrix[np.ix_(indices, indices)].sum() / 2.0 + self.linear[indices].sum())

    def random_total(self) -> float:
        """Exact expectation of F over uniformly random k-subsets."""
        if self.n < 2:
            return float(self.linear.sum())
        off_diagonal = float(self.matrix.sum()) / (self.n * (self.n - 1))
        distances = off_diagonal * self.k * (self.k - 1) / 2.0
        return distances + float(self.linear.mean()) * self.k


def prepare(
    x: Features,
    k: int,
    *,
    distance: DistanceOrMatrix = "cosine",
    quality: Quality | None = None,
    owner: str,
) -> Problem:
    """Check the arguments of a solver and build its `Problem`.

    Raises:
        TypeError: when k is no int or x holds no real numbers.
        ValueError: for k outside 0..n, an unknown distance, NaN or infinity, or a quality of the wrong shape.
    """
    matrix = distance_matrix(x, distance, owner=owner)
    n = matrix.shape[0]
    check_k(k, n, owner)
    linear = np.zeros(n)
    if k > 0 and quality is not None:
        linear = check_quality(quality, n, owner) * (max(1, k * (k - 1) // 2) / k)
    if k < 2:  # no pair is left: F is linear
        matrix = np.zeros_like(matrix)
    known = distance != "precomputed" or is_concave(matrix)
    return Problem(matrix=matrix, linear=linear, k=int(k), negative_type=known)


def check_k(k: int, n: int, owner: str) -> None:
    """Raise unless `k` is an int in 0..n."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"{owner}: k must be an int, got {k!r} of type {type(k).__name__}")
    if not 0 <= k <= n:
        raise ValueError(f"{owner}: k must be in 0..{n} (the number of points), got {k}; use min(k, n) to keep all")


def check_quality(quality: Quality, n: int, owner: str) -> Array:
    """Return `quality` as finite float64 (n,)."""
    array = as_array(quality, owner, "quality")
    if array.shape != (n,):
        raise ValueError(f"{owner}: quality must have shape ({n},), one number per point, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{owner}: quality holds NaN or infinity")
    return array.astype(np.float64)


def check_indices(indices: object, n: int, owner: str, name: str = "indices") -> Indices:
    """Return `indices` as sorted int64, after checking that they are unique and in 0..n-1."""
    array = as_array(indices, owner, name)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{owner}: {name} must be one-dimensional ints, got {array.dtype} {array.shape}")
    result: Indices = np.sort(array.astype(np.int64))
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{owner}: {name} must be unique and in 0..{n - 1}, got {array.tolist()[:12]}")
    if result.size and (result[0] < 0 or result[-1] >= n or (np.diff(result) == 0).any()):
        raise ValueError(f"{owner}: {name} must be unique and in 0..{n - 1}, got {result.tolist()[:12]}")
    return result


def count_rows(x: Features, owner: str) -> int:
    """Number of points; raise when x is no matrix."""
    if isinstance(x, torch.Tensor):
        check_tensor(x, owner, "x")
    shape = x.shape if isinstance(x, torch.Tensor) else as_array(x, owner, "x").shape
    if len(shape) != 2:
        raise ValueError(f"{owner}: x must be two-dimensional (n, d), got shape {tuple(shape)}")
    return int(shape[0])


def pair_sum(x: Features, indices: object = None, *, distance: DistanceOrMatrix = "cosine") -> float:
    r"""Sum of distances over the unordered pairs of a set: $\sum_{i<j\in S} d(i,j)$, in float64.

    Args:
        x: (n, d) features of any dtype, or the (n, n) matrix with distance="precomputed".
        indices: the set S, unique; None means all rows.
        distance: see `distance_matrix`.

    Returns:
        The sum; 0 for fewer than two points.

    Raises:
        ValueError: for indices out of range or repeated, or a bad `x`.

    Examples:
        >>> pair_sum(np.array([[0.0], [1.0], [3.0]]), distance="euclidean")
        6.0
    """
    check_choice("pair_sum", "distance", distance, get_args(DistanceOrMatrix))
    if indices is not None:
        chosen = check_indices(indices, count_rows(x, "pair_sum"), "pair_sum")
        if chosen.size == 0:
            return 0.0
        x = x if isinstance(x, torch.Tensor) else as_array(x, "pair_sum", "x")
        # Only the rows of the set: the check for NaN in the other rows would cost more than the sum itself.
        x = x[np.ix_(chosen, chosen)] if distance == "precomputed" else x[chosen]
    return float(np.triu(distance_matrix(x, distance, owner="pair_sum"), 1).sum())


def mean_pairwise_distance(x: Features, indices: object = None, *, distance: DistanceOrMatrix = "cosine") -> float:
    r"""The RepMax objective: expected distance of two distinct random members, $\frac{2}{k(k-1)}\sum_{i<j} d(i,j)$.

    Args:
        x: (n, d) features of any dtype, or the (n, n) matrix with distance="precomputed".
        indices: the set, unique; None means all rows. All rows also give the exact expectation over random subsets.
        distance: see `distance_matrix`.

    Returns:
        The mean over unordered pairs of distinct members; 0 for fewer than two points.

    Examples:
        >>> mean_pairwise_distance(np.array([[0.0], [1.0], [3.0]]), [0, 2], distance="euclidean")
        3.0
    """
    n = count_rows(x, "mean_pairwise_distance")
    k = n if indices is None else check_indices(indices, n, "mean_pairwise_distance").size
    return pair_sum(x, indices, distance=distance) / max(1, k * (k - 1) // 2)


def random_expectation(x: Features, *, distance: DistanceOrMatrix = "cosine") -> float:
    r"""Expected mean pairwise distance of a uniformly random subset of any size >= 2: that of the whole cloud.

    For cosine and squared Euclidean distance the closed forms $(n^2-n+\sum|\hat x|^2-|\sum \hat x|^2)/(n(n-1))$ and
    $2\sum|x-\bar x|^2/(n-1)$ are used: O(nd), no n x n matrix.

    Examples:
        >>> random_expectation(np.array([[0.0], [1.0], [3.0]]), distance="euclidean")
        2.0
    """
    check_choice("random_expectation", "distance", distance, get_args(DistanceOrMatrix))
    n = count_rows(x, "random_expectation")
    if n < 2 or distance not in ("cosine", "sqeuclidean"):
        return mean_pairwise_distance(x, distance=distance)
    points = as_float64(x, owner="random_expectation")
    if distance == "cosine":
        unit = unit_rows(points)
        return float((n * (n - 1) + (unit**2).sum() - (unit.sum(0) ** 2).sum()) / (n * (n - 1)))
    return float(2.0 * ((points - points.mean(0)) ** 2).sum() / (n - 1))


def negative_type_defect(matrix: Array) -> float:
    r"""Largest eigenvalue of $PDP$, $P=I-\frac1n 11^\top$, when it is positive beyond rounding, else exactly 0.

    D is of negative type iff $v^\top Dv\le0$ for all v with $1^\top v=0$, that is iff this is 0. O(n^3).

    Args:
        matrix: (n, n) symmetric, zero diagonal.

    Examples:
        >>> negative_type_defect(np.array([[0.0, 1.0], [1.0, 0.0]]))
        0.0
    """
    rows = matrix.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(matrix - rows[:, None] - rows[None] + matrix.mean())
    largest = float(eigenvalues[-1])
    return largest if largest > _NEGATIVE_TYPE * abs(float(eigenvalues[0])) else 0.0


def relative_gap(value: float, upper_bound: float) -> float:
    """(upper_bound - value) / |upper_bound|; 0 when both are 0. Never negative, although rounding may say so."""
    return 0.0 if upper_bound == value else max(0.0, upper_bound - value) / max(abs(upper_bound), 1e-300)


def normalised_gap(value: float, upper_bound: float, random_value: float) -> float:
    """Gap measured on the scale from a random subset to the bound: (bound - value) / (bound - random).

    A random subset alone reaches 70 to 87 % of the optimum on token clouds, so the plain gap flatters everything.
    """
    room = upper_bound - random_value
    return 0.0 if room <= 0.0 or upper_bound <= value else (upper_bound - value) / room
