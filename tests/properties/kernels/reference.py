"""The plainest greedy in float64, which says at every step how far the runner-up is behind."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenprune.kernels.loops import DEPENDENT
from tokenprune.repmax import distance_matrix

Array = np.ndarray[Any, Any]
DISTANCES: tuple[Any, ...] = ("cosine", "euclidean", "sqeuclidean", "angular")
KINDS = ("random", "clusters", "copies", "zeros")


def cloud(kind: str, n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "clusters":
        centres = 3 * torch.randn(max(1, n // 8), d, generator=generator)
        x = centres[torch.randint(len(centres), (n,), generator=generator)] + 0.1 * x
    elif kind == "copies":
        x = x[torch.randint(max(1, n // 3), (n,), generator=generator)]
    elif kind == "zeros":
        x[torch.rand(n, generator=generator) < 0.3] = 0.0
    return x.to(dtype)


def tolerance(matrix: Array, distance: str) -> float:
    """Rounding of one entry in single precision, generously; square roots lose half the digits near 0."""
    scale = max(float(np.abs(matrix).max()), 1.0 if distance in ("cosine", "angular") else 1e-30)
    return scale * (2e-3 if distance in ("euclidean", "angular") else 2e-5)


def check_walk(x: Tensor, picks: Tensor, objective: str, distance: Any, start: Any) -> None:
    """Each pick has the best score in float64, given the picks before it, up to rounding; equal rows in their order."""
    matrix = distance_matrix(x, distance)
    n, order = len(matrix), picks.tolist()
    assert len(set(order)) == len(order)
    slack = tolerance(matrix, distance)
    hidden = matrix + np.diag(np.full(n, np.inf))
    first = {"sum": matrix.sum(1), "max": matrix.max(1), "min": hidden.min(1)}
    if isinstance(start, int):
        assert order[0] == start
    else:
        check_pick(first[start], order[0], slack * (n if start == "sum" else 1))
    for step in range(1, len(order)):
        past = matrix[order[:step]]
        score = past.sum(0) if objective == "sum" else past.min(0)
        score[order[:step]] = -np.inf
        check_pick(score, order[step], slack * (step if objective == "sum" else 1))
    given = isinstance(start, int)
    check_equal_rows(x, order[given:], set(order[:given]))


def check_pick(score: Array, pick: int, slack: float) -> None:
    ranked = np.sort(score)[::-1]
    if len(ranked) == 1 or ranked[0] - ranked[1] > slack:
        assert pick == int(score.argmax())
    else:
        assert score[pick] >= ranked[0] - slack


def check_equal_rows(x: Tensor, order: list[int], gone: set[int]) -> None:
    """Of rows that are equal bit for bit the lowest comes first."""
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(x.double().numpy() + 0.0):
        if i not in gone:
            groups.setdefault(row.tobytes(), []).append(i)
    place = {i: step for step, i in enumerate(order)}
    for members in groups.values():
        steps = [place.get(i, len(order)) for i in members]
        assert steps == sorted(steps)


def check_determinant(kernel: Array, order: list[int], slack: float) -> None:
    """Each pick has the largest residual by a fresh solve in float64; dependent tokens come last."""
    quality = np.diagonal(kernel)
    for step, pick in enumerate(order):
        past = order[:step]
        residual = quality.copy()
        if past:
            block = kernel[np.ix_(past, past)]
            residual = quality - np.einsum(
                "in,in->n", kernel[past], np.linalg.lstsq(block, kernel[past], rcond=1e-9)[0]
            )
        residual[past] = -np.inf
        if residual.max() > 10 * DEPENDENT * quality.max() + slack:
            check_pick(residual, pick, slack)
        assert pick not in past
