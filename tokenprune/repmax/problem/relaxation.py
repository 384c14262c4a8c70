r"""Upper bounds from the concave relaxation.

F(z) = z'Az/2 + b'z with A negative semidefinite on the plane 1'z = k is concave there, so its tangent at any point of
the plane lies above it, and the tangent's maximum over all k-subsets is a sum of k largest gradient entries:

    F(S) <= F(z) - g'z + top_k(g),   g = Az + b,   for every k-subset S and every z with 1'z = k.

z need not be feasible, and nothing about how z was found matters: the bound stands for any z. Good z come from
pairwise Frank-Wolfe steps followed by a few steps of an active-set Newton method on the fractional coordinates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from tokenprune.repmax.problem.distances import Array

_WILD = 3.0  # a Newton step that long comes from a singular block
_EDGE = 1e-6  # a coordinate this close to 0 or 1 counts as there
_REACH = 2.0  # points with |z|_1 above this times k prove nothing: `Problem.slack` covers rounding up to here
_REFRESH = 64  # steps between recomputations of the gradient, against drift


@dataclass(frozen=True, eq=False)
class Tangent:
    """A point of the plane and the bound that its tangent proves.

    Attributes:
        bound: upper bound on F over all k-subsets (exact arithmetic; add `Problem.slack`).
        value: F(z).
        z: (n,) the point.
        gradient: (n,) g = Az + b.
    """

    bound: float
    value: float
    z: Array
    gradient: Array


def tangent_at(matrix: Array, linear: Array, k: int, z: Array, gradient: Array | None = None) -> Tangent:
    """The tangent bound at z, which must sum to k.

    Examples:
        >>> d = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]])  # 0, 1, 2 on a line, squared
        >>> tangent_at(d, np.zeros(3), 2, np.array([1.0, 0.0, 1.0])).bound
        4.0
    """
    g = matrix @ z + linear if gradient is None else gradient
    if float(np.abs(z).sum()) > _REACH * k:  # so far outside the box that rounding would drown the bound
        return Tangent(bound=np.inf, value=-np.inf, z=z, gradient=g)
    value = 0.5 * float(z @ (g + linear))
    return Tangent(bound=value - float(g @ z) + top_sum(g, k), value=value, z=z, gradient=g)


def top_sum(g: Array, k: int) -> float:
    """Sum of the k largest entries."""
    return 0.0 if k == 0 else float(np.partition(g, g.size - k)[g.size - k :].sum())


def on_plane(z: Array, k: int) -> Array:
    """The nearest point with coordinates summing to k."""
    result: Array = z + (k - z.sum()) / z.size
    return result


def relax(
    matrix: Array,
    linear: Array,
    k: int,
    start: Array,
    *,
    stop: float = -np.inf,
    steps: int = 0,
    tolerance: float = 1e-9,
) -> Tangent:
    """The best tangent found for maximise F over 0 <= z <= 1, 1'z = k; nearly always the converged relaxation.

    Args:
        matrix: (n, n), negative semidefinite on the plane.
        linear: (n,).
        k: 0 < k < n.
        start: (n,) any point; the closer to the solution the faster.
        stop: return as soon as the bound is at most this.
        steps: Frank-Wolfe steps to begin with; worth it from far away, as they change many coordinates at once.
        tolerance: relative distance between bound and value at which to stop.
    """
    point = into_box(start, k)
    best = frank_wolfe(matrix, linear, k, point, stop=stop, steps=steps, tolerance=tolerance)
    if not _done(best, stop, tolerance):
        guessed = guess_active_set(matrix, linear, k, best.z, stop=stop, tolerance=tolerance)
        best = min(best, guessed, key=_bound)
    if not _done(best, stop, tolerance):
        refined = active_set(matrix, linear, k, into_box(best.z, k), stop=stop, tolerance=tolerance)
        best = min(best, refined, key=_bound)
    return best


def _bound(tangent: Tangent) -> float:
    return tangent.bound


def _done(tangent: Tangent, stop: float, tolerance: float) -> bool:
    # Between value and bound lies the maximum, since the walks stay in the box.
    return tangent.bound <= stop or tangent.bound - tangent.value <= tolerance * abs(tangent.value)


def into_box(z: Array, k: int) -> Array:
    """A point of the box near z whose coordinates sum to k: a common shift, then clipping, the shift by bisection.

    Where they can take it, only coordinates strictly between 0 and 1 move: the others are probably right already.
    """
    clipped = np.clip(z, 0.0, 1.0)
    excess = float(clipped.sum()) - k
    if abs(excess) <= 1e-12 * k:
        return clipped
    between = np.flatnonzero((clipped > _EDGE) & (clipped < 1.0 - _EDGE))
    inner = clipped[between]
    if between.size < z.size and inner.sum() > excess > inner.sum() - between.size:
        clipped[between] = _shifted_into_box(inner, float(inner.sum()) - excess)
        return clipped
    return _shifted_into_box(z, float(k))


def _shifted_into_box(z: Array, total: float) -> Array:
    low, high = -float(z.max()), 1.0 - float(z.min())
    for _ in range(40):
        middle = 0.5 * (low + high)
        if float(np.clip(z + middle, 0.0, 1.0).sum()) < total:
            low = middle
        else:
            high = middle
    return np.clip(z + high, 0.0, 1.0)


def frank_wolfe(
    matrix: Array, linear: Array, k: int, start: Array, *, stop: float, steps: int, tolerance: float
) -> Tangent:
    """Decomposition-invariant pairwise Frank-Wolfe from a point of the box.

    Each step moves from the worst vertex of the smallest face around z to the best vertex of all: both are
    selections of k largest or smallest gradient entries, and only rows in which they differ are read.
    """
    z, g = start, matrix @ start + linear
    best = tangent_at(matrix, linear, k, z, g)
    for step in range(1, steps + 1):
        if _done(best, stop, tolerance):
            break
        toward = np.argpartition(g, g.size - k)[g.size - k :]
        faced = np.where(z >= 1.0 - 1e-12, -np.inf, np.where(z <= 1e-12, np.inf, g))
        away = np.argpartition(faced, k - 1)[:k]
        direction = np.zeros_like(z)
        direction[toward] += 1.0
        direction[away] -= 1.0
        moved = np.flatnonzero(direction)
        if moved.size == 0:
            break
        change = direction[moved] @ matrix[moved]
        slope, curvature = float(g @ direction), -float(direction @ change)
        room = float(np.where(direction > 0, 1.0 - z, np.where(direction < 0, z, np.inf)).min())
        length = min(room, slope / curvature) if curvature > 0 else room
        if slope <= 0 or length <= 0:
            break
        z = np.clip(z + length * direction, 0.0, 1.0)
        g = g + length * change if step % _REFRESH else matrix @ z + linear
        best = min(best, tangent_at(matrix, linear, k, z, g), key=_bound)
    # Drifted gradients are good enough to walk by, not to prove with; and z must sum to k exactly.
    return tangent_at(matrix, linear, k, on_plane(best.z, k))


def guess_active_set(
    matrix: Array, linear: Array, k: int, start: Array, *, stop: float, tolerance: float, limit: int = 12
) -> Tangent:
    """Primal-dual active set: guess which coordinates are 0, 1 or between, solve for those, correct all at once.

    Converges in one to six solves from a good start and may cycle from a bad one, hence the limit; then `active_set`,
    which corrects one coordinate at a time and cannot cycle, goes on from the best point seen.
    """
    z = start
    upper, between = z >= 1.0 - _EDGE, (z > _EDGE) & (z < 1.0 - _EDGE)
    best = tangent_at(matrix, linear, k, on_plane(z, k))
    for _ in range(limit):
        rows = np.flatnonzero(between)
        places = k - int(upper.sum())
        if rows.size == 0 or not 0 <= places <= rows.size:
            break
        z = upper.astype(np.float64)
        z[rows] = places / rows.size
        step = newton_step(matrix, matrix @ z + linear, rows)
        if step is None:
            break
        z[rows] += step
        current = tangent_at(matrix, linear, k, on_plane(np.clip(z, 0.0, 1.0), k))
        best = min(best, current, key=_bound)
        if _done(current, stop, tolerance):
            return current
        g = matrix @ z + linear
        price = float(g[rows].mean())
        high = (upper & (g > price)) | (between & (z > 1.0))
        low = (~upper & ~between & (g < price)) | (between & (z < 0.0))
        middle = ~(high | low)
        if bool((high == upper).all()) and bool((middle == between).all()):
            break
        upper, between = high, middle
    return best


def active_set(
    matrix: Array, linear: Array, k: int, start: Array, *, stop: float, tolerance: float, limit: int = 200
) -> Tangent:
    """Newton steps on the coordinates strictly between 0 and 1, from a point of the box; never downhill.

    A step that would leave the box stops at its wall, and the coordinate stays there; when the free coordinates are
    settled, the coordinates whose gradient is on the wrong side of the price are set free. From the solution of a
    similar problem this takes a handful of solves.
    """
    z = start
    between = (z > _EDGE) & (z < 1.0 - _EDGE)
    z = np.where(between, z, np.round(z))
    best: Tangent | None = None
    for _ in range(limit):
        current = tangent_at(matrix, linear, k, on_plane(z, k))
        best = current if best is None or current.bound < best.bound else best
        if _done(best, stop, tolerance):
            break
        g = current.gradient
        rows = np.flatnonzero(between)
        step = newton_step(matrix, g, rows)
        if step is None or float(g[rows] @ step) <= 0.1 * tolerance * abs(current.value):
            if not _release(g, z, between):
                break
            continue
        room = np.where(step > 0, 1.0 - z[rows], z[rows]) / np.maximum(np.abs(step), 1e-300)
        length = min(1.0, float(room.min()))
        moved = z[rows] + length * step
        walls = room <= length * (1.0 + 1e-9)
        z[rows] = np.where(walls, np.where(step > 0, 1.0, 0.0), np.clip(moved, 0.0, 1.0))
        between[rows[walls]] = False
    if best is None:
        raise RuntimeError("active_set: limit must be positive")  # cannot happen: it is a constant
    return best


def _release(g: Array, z: Array, between: NDArray[np.bool_]) -> bool:
    """Set free the coordinate at 0 with the largest and the one at 1 with the smallest gradient, if that helps."""
    zeros, ones = np.flatnonzero(~between & (z < 0.5)), np.flatnonzero(~between & (z > 0.5))
    top = int(zeros[g[zeros].argmax()]) if zeros.size else -1
    bottom = int(ones[g[ones].argmin()]) if ones.size else -1
    if between.any():
        price = float(g[between].mean())
    elif top >= 0 and bottom >= 0:
        price = 0.5 * float(g[top] + g[bottom])
    else:
        return False
    margin = 1e-13 * float(np.abs(g).max())
    released = False
    if top >= 0 and g[top] > price + margin:
        between[top] = released = True
    if bottom >= 0 and g[bottom] < price - margin:
        between[bottom] = released = True
    return released


def newton_step(matrix: Array, g: Array, rows: NDArray[np.int64]) -> Array | None:
    """The step on `rows` to the maximum of F on the plane with all else fixed; None where there is none."""
    if rows.size < 2:
        return None
    block = matrix[np.ix_(rows, rows)]
    scale = float(np.abs(block).max()) or 1.0
    right = g[rows] - g[rows].mean()
    for ridge in (1e-11, 1e-6):  # the second for singular blocks: fewer dimensions than points
        # On the plane -A is positive semidefinite; in the direction 1, where the step has no part, any value will do.
        system = scale - centred(block)
        system.flat[:: rows.size + 1] += ridge * scale
        _, solved, info = dposv(system, right)
        if info == 0 and float(np.abs(solved).max()) < _WILD:
            return np.asarray(solved - solved.mean())
    return None if info != 0 else np.asarray(solved - solved.mean())


def centred(matrix: Array) -> Array:
    """P A P with P = I - 11'/n: the quadratic form on vectors that sum to 0."""
    rows = matrix.mean(axis=0)
    result: Array = matrix - rows[:, None] - (rows - rows.mean())
    return result
