"""Distances in float64, accurate down to exact duplicates, for rows in the host's memory."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

# Below this share of |a|^2 + |b|^2 a squared distance from the Gram matrix has lost digits to cancellation and is
# computed again from the difference of the two rows.
_CANCELLED = 1e-4
_BLOCK_BYTES = 1 << 26


def distances(points: Array, distance: str) -> Array:
    """Pairwise distances of distinct rows, of unit rows for "cosine" and "angular"; infinity where they overflow."""
    if distance == "cosine":
        return np.asarray(1.0 - points @ points.T)
    if distance == "angular":
        return _angles(points)
    # A power of two keeps the squares inside the float64 range and changes no digit.
    exponent = int(np.frexp(np.abs(points).max(initial=0.0))[1])
    squares = _squared(np.ldexp(points, -exponent))
    with np.errstate(over="ignore"):  # infinity is reported by the caller
        if distance == "sqeuclidean":
            return np.ldexp(squares, 2 * exponent)
        return np.ldexp(np.sqrt(squares), exponent)


def distinct(points: NDArray[Any], *, zeros_are_equal: bool) -> tuple[list[int], NDArray[np.int64]]:
    """Rows that occur for the first time, and for every row the place of its equal among them.

    Args:
        points: (n, d), any dtype; rows are equal when all their numbers are, and -0.0 equals 0.0.
        zeros_are_equal: False to count every zero row as one of its own.

    Examples:
        >>> distinct(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, -0.0]]), zeros_are_equal=True)
        ([0, 1], array([0, 1, 0, 1]))
    """
    seen: dict[bytes, int] = {}
    kept: list[int] = []
    inverse = np.empty(len(points), dtype=np.int64)
    zero = np.abs(points).max(axis=1, initial=0.0) == 0
    for i, row in enumerate(points + 0.0):  # -0.0 becomes 0.0
        key = row.tobytes()
        place = len(kept) if zero[i] and not zeros_are_equal else seen.setdefault(key, len(kept))
        if place == len(kept):
            kept.append(i)
        inverse[i] = place
    return kept, inverse


def unit_rows(points: Array) -> Array:
    """Rows scaled to length 1; a zero row stays zero. Two steps, so that no square over- or underflows."""
    largest = np.abs(points).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(points, largest, out=np.zeros_like(points), where=largest > 0)
    result: Array = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1.0)
    return result


def _squared(points: Array) -> Array:
    """Squared Euclidean distances: one matrix product, and the differences themselves where it cancels."""
    centred = points - points.mean(axis=0)  # a common offset would cost digits
    norms = np.einsum("nd,nd->n", centred, centred)
    total = norms[:, None] + norms[None]
    squares: Array = total - 2.0 * (centred @ centred.T)
    _recompute(squares, squares < _CANCELLED * total, points, sign=-1.0)
    np.maximum(squares, 0.0, out=squares)
    return squares


def _recompute(squares: Array, where: NDArray[np.bool_], points: Array, *, sign: float) -> None:
    """Overwrite |a + sign b|^2 with the direct value at the pairs of `where`, in blocks of bounded memory."""
    rows, columns = np.nonzero(np.triu(where, 1))
    step = max(1, _BLOCK_BYTES // max(1, 8 * points.shape[1]))
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        difference = points[i] + sign * points[j]
        squares[i, j] = squares[j, i] = np.einsum("nd,nd->n", difference, difference)


def _angles(unit: Array) -> Array:
    gram = unit @ unit.T
    norms = np.einsum("nd,nd->n", unit, unit)  # 1, or 0 for zero rows
    total = norms[:, None] + norms[None]
    near, far = total - 2.0 * gram, total + 2.0 * gram
    _recompute(near, near < _CANCELLED, unit, sign=-1.0)
    _recompute(far, far < _CANCELLED, unit, sign=1.0)
    near, far = np.maximum(near, 0.0), np.maximum(far, 0.0)
    angles: Array = 2.0 * np.arctan2(np.sqrt(near), np.sqrt(far))
    zero = norms == 0
    angles[zero] = angles[:, zero] = np.pi / 2
    return angles


def all_distances(points: Array, distance: str) -> Array:
    """Pairwise distances of rows of which some may be equal: those have distance 0 and equal distances to the rest.

    Args:
        points: (n, d).
        distance: "cosine", "euclidean", "sqeuclidean" or "angular".

    Returns:
        float64 (n, n), symmetric, zero diagonal, never negative; infinity where a distance overflows.

    Examples:
        >>> all_distances(np.array([[3.0, 0.0], [0.0, 4.0]]), "euclidean")
        array([[0., 5.],
               [5., 0.]])
    """
    if distance in ("cosine", "angular"):
        points = unit_rows(points)
    # Equal rows are handled once.
    kept, inverse = distinct(points, zeros_are_equal=distance not in ("cosine", "angular"))
    result = distances(points[kept], distance)
    np.maximum(result, 0.0, out=result)
    np.fill_diagonal(result, 0.0)
    return result if len(kept) == len(points) else result[np.ix_(inverse, inverse)]
