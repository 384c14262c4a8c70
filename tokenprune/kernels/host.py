"""The greedy loops in NumPy, for tensors in the host's memory: a step costs one microsecond, not ten.

The rules and the arithmetic are those of `tokenprune.kernels.loops`. One image at a time works on views; several
images of one size share the call overhead of each step.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenprune.kernels.loops import DEPENDENT

Matrix: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]
Row: TypeAlias = Callable[[int], Matrix]


def max_sum(row: Row, n: int, keep: int, first: int, dtype: np.dtype[Any]) -> Indices:
    """One image; `row(i)` is row i of its matrix. See `loops.max_sum`."""
    order = np.empty(keep, dtype=np.int64)
    gains = np.zeros(n, dtype=dtype)
    pick = first
    for step in range(keep - 1):
        order[step] = pick
        gains += row(pick)
        gains[pick] = -np.inf
        pick = gains.argmax()  # type: ignore[assignment]
    order[keep - 1] = pick
    return order


def max_min(row: Row, n: int, keep: int, first: int, dtype: np.dtype[Any]) -> Indices:
    """One image; `row(i)` is row i of its matrix. See `loops.max_min`."""
    order = np.empty(keep, dtype=np.int64)
    nearest = np.full(n, np.inf, dtype=dtype)
    pick = first
    for step in range(keep - 1):
        order[step] = pick
        np.minimum(nearest, row(pick), out=nearest)
        nearest[pick] = -np.inf
        pick = nearest.argmax()  # type: ignore[assignment]
    order[keep - 1] = pick
    return order


def max_sum_together(matrix: Matrix, keep: int, first: Indices) -> Indices:
    """Several images, (b, n, n)."""
    return _together(matrix, keep, first, np.add, 0.0)


def max_min_together(matrix: Matrix, keep: int, first: Indices) -> Indices:
    """Several images, (b, n, n)."""
    return _together(matrix, keep, first, np.minimum, np.inf)


def _together(matrix: Matrix, keep: int, first: Indices, combine: np.ufunc, start: float) -> Indices:
    batch, n, _ = matrix.shape
    order = np.empty((batch, keep), dtype=np.int64)
    state = np.full((batch, n), start, dtype=matrix.dtype)
    rows, flat = matrix.reshape(batch * n, n), state.reshape(-1)
    chosen = np.empty_like(state)
    offset = np.arange(batch) * n
    pick = first
    for step in range(keep - 1):
        order[:, step] = pick
        place = offset + pick
        np.take(rows, place, axis=0, out=chosen, mode="clip")  # any mode but "raise" writes without a buffer
        combine(state, chosen, out=state)
        flat[place] = -np.inf
        pick = state.argmax(axis=1)
    order[:, keep - 1] = pick
    return order


def max_determinant(row: Row, keep: int, quality: Matrix, last_resort: Matrix) -> Indices:
    """One image; `row(i)` is row i of its kernel. See `loops.max_determinant`."""
    n = len(quality)
    order = np.empty(keep, dtype=np.int64)
    residual = quality.copy()
    limit = quality * quality.dtype.type(DEPENDENT)
    factors = np.zeros((keep, n), dtype=quality.dtype)
    # Once picked, a token ranks below the last resorts, which are at least -2; as dependent it stays there.
    ranked = last_resort.copy()
    for step in range(keep):
        dependent = residual <= limit
        pick = np.where(dependent, ranked, residual).argmax()
        order[step] = pick
        if not dependent[pick]:
            new = row(int(pick)) - factors[:step, pick] @ factors[:step]
            new /= np.sqrt(residual[pick])
            residual -= new * new
            factors[step] = new
        residual[pick] = ranked[pick] = -np.inf
    return order
