"""Exact duplicates among the points, which would otherwise make the search tree explode.

Clones (distance 0, same distances to all others, same linear term) are interchangeable, so it is enough to look at sets
that take the clones of a class in order of their index. On those, with s the number of clones taken,

    s^2 = sum_r (2r - 1) z_r      (z_1 >= z_2 >= ..., the first r odd numbers sum to r^2),

which lets a class as a whole have a diagonal shift although the difference of two clones has no curvature at all.
"""

import numpy as np
from numpy.typing import NDArray

from tokenprune.repmax.problem.distances import Array

Classes = NDArray[np.int64]


def clone_classes(matrix: Array, linear: Array) -> Classes:
    """(n,): for each point the lowest index among its clones. Clones must agree bit for bit.

    Examples:
        >>> clone_classes(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), np.zeros(3))
        array([0, 1, 0])
    """
    seen: dict[tuple[bytes, float], int] = {}
    pairs = zip(matrix, linear.tolist(), strict=True)
    return np.array([seen.setdefault((row.tobytes(), b), i) for i, (row, b) in enumerate(pairs)], dtype=np.int64)


def ranks(classes: Classes) -> NDArray[np.int64]:
    """For points in ascending order: 1 for the first of its class, 2 for the second, and so on."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(np.concatenate([first, [classes.size]]))
    result = np.empty(classes.size, dtype=np.int64)
    result[order] = np.arange(classes.size) - np.repeat(first, lengths) + 1
    return result


def representatives(classes: Classes) -> NDArray[np.int64]:
    """Positions of the first point of each class."""
    return np.flatnonzero(ranks(classes) == 1)


def spread(values: Array, classes: Classes) -> Array:
    """Give each point the value of its class; `values` belong to `representatives(classes)`, in that order."""
    _, inverse = np.unique(classes, return_inverse=True)
    by_class = np.empty(values.size)
    by_class[inverse[representatives(classes)]] = values
    return np.asarray(by_class[inverse])


def fractionality(z: Array, classes: Classes) -> Array:
    """Per class, how much a unit of shift lowers the relaxation at z: (sum_r (2r - 1) z_r - s^2) / 2."""
    _, inverse = np.unique(classes, return_inverse=True)
    taken = np.bincount(inverse, z)
    falls = 0.5 * (np.bincount(inverse, z * (2.0 * ranks(classes) - 1.0)) - taken * taken)
    return np.asarray(falls[inverse[representatives(classes)]])


def close_under_order(
    classes: Classes, ones: NDArray[np.bool_], zeros: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Complete decisions: with a clone in, the earlier ones are in; with a clone out, the later ones are out."""
    ones, zeros = ones.copy(), zeros.copy()
    for place in np.flatnonzero(ones):
        ones[:place] |= classes[:place] == classes[place]
    for place in np.flatnonzero(zeros):
        zeros[place:] |= classes[place:] == classes[place]
    return ones, zeros
