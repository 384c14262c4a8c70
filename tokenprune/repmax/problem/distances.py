"""Pairwise distances of token vectors in float64, accurate down to exact duplicates.

Every distance here is of *negative type*: d(i, j) = |phi(i) - phi(j)|^2 for some embedding phi into a Hilbert space
(Schoenberg 1938). That single fact carries the bounds, the exact solver and the guarantees of this package.
"""

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.core.fields import check_choice
from tokenprune.kernels.float64 import Array as Array
from tokenprune.kernels.float64 import all_distances
from tokenprune.kernels.float64 import unit_rows as unit_rows
from tokenprune.repmax.problem.inputs import as_array

Distance = Literal["cosine", "euclidean", "sqeuclidean", "angular"]
DistanceOrMatrix = Literal["cosine", "euclidean", "sqeuclidean", "angular", "precomputed"]
Features: TypeAlias = NDArray[Any] | torch.Tensor

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
    result = all_distances(points, distance)
    if not np.isfinite(result).all():
        raise ValueError(f"{owner}: {distance} distances of x overflow float64; scale the tokens down")
    return result


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
