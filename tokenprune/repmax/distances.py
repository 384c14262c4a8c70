"""Pairwise distances of token vectors in float64, accurate down to exact duplicates.

Every distance here is of *negative type*: d(i, j) = |phi(i) - phi(j)|^2 for some embedding phi into a Hilbert space
(Schoenberg 1938). That single fact carries the bounds, the exact solver and the guarantees of this package.
"""

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.core.fields import check_choice
from tokenprune.repmax.inputs import as_array

Distance = Literal["cosine", "euclidean", "sqeuclidean", "angular"]
DistanceOrMatrix = Literal["cosine", "euclidean", "sqeuclidean", "angular", "precomputed"]
Array: TypeAlias = NDArray[np.float64]
Features: TypeAlias = NDArray[Any] | torch.Tensor

# Below this share of |a|^2 + |b|^2 a squared distance from the Gram matrix has lost digits to cancellation and is
# computed again from the difference of the two rows.
_CANCELLED = 1e-4
_BLOCK_BYTES = 1 << 26
_ASYMMETRY = 1e-6


def as_float64(x: Features, *, owner: str, name: str = "x") -> Array:
    """Return `x` as a finite float64 matrix (n, d), n >= 1, up-cast from whatever dtype and device it has.

    Args:
        x: (n, d) real numbers, NumPy or torch.
        owner: the function whose argument this is; it starts the error message.
        name: the argument's name.

    Raises:
        TypeError: when `x` holds no real numbers.
        ValueError: when `x` is not two-dimensional, has no rows, or holds NaN or infinity.
    """
    array = as_array(x, owner, name)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{owner}: {name} must be two-dimensional (n, d) with n >= 1 and d >= 1, got shape {array.shape}"
        )
    result = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError(f"{owner}: {name} holds NaN or infinity; find where the tokens are made")
    return result


def distance_matrix(x: Features, distance: DistanceOrMatrix = "cosine", *, owner: str = "distance_matrix") -> Array:
    r"""All pairwise distances, float64 (n, n), symmetric, zero diagonal, never negative.

    cosine: $1-\cos(a,b)$; euclidean: $\lVert a-b\rVert$; sqeuclidean: $\lVert a-b\rVert^2$; angular: the angle in
    radians, as $2\,\mathrm{atan2}(\lVert a-b\rVert,\lVert a+b\rVert)$ of the unit rows, because arccos loses half the
    digits near 0 and near pi. A zero row has cosine 0 with every other row, hence cosine distance 1 and angle pi/2,
    as if it had an axis of its own.

    Args:
        x: (n, d) token vectors of any real dtype, or with distance="precomputed" an (n, n) distance matrix. A matrix
            may be asymmetric by 1e-6 of its largest entry (float32 rounding); the mean of both halves is taken.
        distance: "cosine", "euclidean", "sqeuclidean", "angular" or "precomputed".
        owner: name that starts error messages.

    Returns:
        float64 (n, n).

    Raises:
        TypeError: when `x` holds no real numbers.
        ValueError: for an unknown distance, a wrong shape, NaN or infinity, or a matrix that is no distance matrix.

    Examples:
        >>> distance_matrix(np.array([[3.0, 0.0], [0.0, 4.0]]), "euclidean")
        array([[0., 5.],
               [5., 0.]])
    """
    check_choice(owner, "distance", distance, get_args(DistanceOrMatrix))
    points = as_float64(x, owner=owner)
    if distance == "precomputed":
        return _checked_matrix(points, owner)
    if distance in ("cosine", "angular"):
        points = unit_rows(points)
    # Equal rows are handled once, so that duplicates are at distance 0 exactly and have equal distances to the rest.
    kept, inverse = _distinct(points, zeros_are_equal=distance not in ("cosine", "angular"))
    result = _distances(points[kept], distance)
    np.maximum(result, 0.0, out=result)
    np.fill_diagonal(result, 0.0)
    if not np.isfinite(result).all():
        raise ValueError(f"{owner}: {distance} distances of x overflow float64; scale the tokens down")
    return result if len(kept) == len(points) else result[np.ix_(inverse, inverse)]


def _distances(points: Array, distance: DistanceOrMatrix) -> Array:
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


def _distinct(points: Array, *, zeros_are_equal: bool) -> tuple[list[int], NDArray[np.int64]]:
    """Rows that occur for the first time, and for every row the place of its equal among them."""
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


def _checked_matrix(matrix: Array, owner: str) -> Array:
    n, columns = matrix.shape
    if n != columns:
        raise ValueError(f"{owner}: with distance='precomputed' x must be a square matrix, got shape {matrix.shape}")
    largest = float(np.abs(matrix).max())
    limit = _ASYMMETRY * largest
    if float(np.abs(matrix - matrix.T).max()) > limit:
        raise ValueError(f"{owner}: the distance matrix is not symmetric; pass (m + m.T) / 2 if that is meant")
    if float(np.abs(np.diagonal(matrix)).max()) > limit:
        raise ValueError(f"{owner}: the distance matrix has a diagonal that is not zero; set it to 0")
    if float(matrix.min()) < -limit:
        raise ValueError(f"{owner}: the distance matrix has negative entries, lowest {float(matrix.min())}")
    result = np.maximum((matrix + matrix.T) / 2.0, 0.0)
    np.fill_diagonal(result, 0.0)
    return result
