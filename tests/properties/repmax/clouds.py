"""Small token clouds for hypothesis, with everything that breaks naive code, and the plainest possible references."""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]

METRICS = ("euclidean", "angular")
DISTANCES: tuple[Any, ...] = ("cosine", "euclidean", "sqeuclidean", "angular")
KINDS = ("gaussian", "lattice", "copies", "heavy", "zeros", "line")


@dataclass(frozen=True, eq=False)
class Cloud:
    """A point set, a distance and a set size."""

    x: Array
    k: int
    distance: Any

    @property
    def n(self) -> int:
        return len(self.x)

    @cached_property
    def matrix(self) -> Array:
        return reference_matrix(self.x, self.distance)

    @property
    def scale(self) -> float:
        """What rounding errors are measured against: the largest distance, or 1 where angles of unit vectors count."""
        return max(float(self.matrix.max()), 1.0 if self.distance in ("cosine", "angular") else 0.0)


def make_cloud(kind: str, n: int, d: int, k: int, distance: str, seed: int) -> Cloud:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "lattice":
        x = rng.integers(-1, 2, size=(n, d)).astype(np.float64)
    elif kind == "copies":
        x = x[rng.integers(n, size=n)]
    elif kind == "heavy":
        x = x * np.exp(2.0 * rng.normal(size=(n, 1)))
    elif kind == "zeros":
        x[rng.random(n) < 0.4] = 0.0
    elif kind == "line":
        x = x[:, :1] * np.ones(d)
    return Cloud(x, k, distance)


@st.composite
def clouds(draw: Any, *, smallest: int = 1, largest: int = 8, distances: tuple[str, ...] = DISTANCES) -> Cloud:
    n = draw(st.integers(max(2, smallest), largest))
    return make_cloud(
        draw(st.sampled_from(KINDS)),
        n,
        draw(st.integers(1, 5)),
        draw(st.integers(smallest, n)),
        draw(st.sampled_from(distances)),
        draw(st.integers(0, 2**20)),
    )


def some_clouds(count: int, *, n: int = 8, k: int | None = None, distances: tuple[str, ...] = DISTANCES) -> list[Cloud]:
    """A fixed list that visits every kind and distance; what mutants are shown."""
    result = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        kind, distance = KINDS[seed % len(KINDS)], distances[seed // len(KINDS) % len(distances)]
        size = k if k is not None else int(rng.integers(2, n))
        result.append(make_cloud(kind, n, int(rng.integers(1, 5)), size, distance, seed))
    return result


def reference_distance(a: Array, b: Array, distance: str) -> float:
    if distance == "euclidean":
        return float(np.linalg.norm(a - b))
    if distance == "sqeuclidean":
        return float(((a - b) ** 2).sum())
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length == 0.0:
        return 1.0 if distance == "cosine" else float(np.pi / 2)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if distance == "cosine":
        return 1.0 - float(a @ b)
    return 2.0 * float(np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def reference_matrix(x: Array, distance: str) -> Array:
    """Pair by pair from the definition."""
    n = len(x)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            result[i, j] = result[j, i] = reference_distance(x[i], x[j], distance)
    return result


def reference_sum(matrix: Array, members: Any) -> float:
    """Pair by pair."""
    chosen = [int(i) for i in members]
    return sum(float(matrix[i, j]) for i, j in combinations(chosen, 2))


def best_sum(matrix: Array, k: int) -> float:
    """Over all subsets."""
    return max(reference_sum(matrix, members) for members in combinations(range(len(matrix)), k))


def greedy_share(k: int) -> float:
    """B(k) = 1 - prod (1 - i / ((i + 1) k))."""
    return 1.0 - float(np.prod([1.0 - i / ((i + 1) * k) for i in range(1, k)]))


def close(a: float, b: float, scale: float | None = None) -> bool:
    return abs(a - b) <= 1e-9 * max(abs(a), abs(b), scale or 0.0)
