r"""Diagonal shifts: a tighter relaxation at no cost in validity.

On binary points z_i^2 = z_i, so for any u the function z'(A + diag u)z/2 + (b - u/2)'z equals F there; with u > 0 it is
smaller on fractional points, and as long as A + diag u stays negative semidefinite on the plane 1'z = k it is
concave: same maximum over sets, lower relaxation (the idea of quadratic convex reformulation, Billionnet and
Elloumi). The shift must leave a *proof*: `is_concave` is one Cholesky factorisation.
"""

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dposv, dpotrf, dpotri

from tokenprune.repmax.problem.distances import Array
from tokenprune.repmax.problem.relaxation import centred

_MARGIN = 2e-14  # rounding allowance of the Cholesky test, per row and relative to the largest entry


def concavity_margin(size: int, largest: float) -> float:
    """How positive an eigenvalue `is_concave` may overlook; it can raise F(S) - bound by at most margin times k."""
    return _MARGIN * size * largest


def is_concave(matrix: Array) -> bool:
    """True when v'Av <= 0 for all v that sum to 0, up to `concavity_margin`: by one Cholesky factorisation.

    Examples:
        >>> is_concave(np.array([[0.0, 1.0], [1.0, 0.0]])), is_concave(np.array([[2.0, 1.0], [1.0, 2.0]]))
        (True, False)
    """
    size = matrix.shape[0]
    largest = float(np.abs(matrix).max(initial=0.0))
    if size < 2 or largest == 0.0:
        return True
    system = largest - centred(matrix)
    system.flat[:: size + 1] += concavity_margin(size, largest)
    return bool(dpotrf(system, lower=1)[1] == 0)


def residual_shift(matrix: Array) -> Array:
    r"""Shift proportional to each row's residual variance: $u_i=\lambda/(K^{-1})_{ii}$, K = -A on the plane.

    1/(K^-1)_ii is what is left of point i after regressing it on the others, so points that others explain
    (duplicates) get nothing and outlying ones get much. lambda is the largest factor that keeps A + diag u concave:
    1 over the largest eigenvalue of W^1/2 K^-1 W^1/2. O(n^3).

    Args:
        matrix: (n, n), negative semidefinite on the plane.

    Returns:
        (n,) u; zeros when nothing can be gained. Entries may be slightly negative, which is valid too.
    """
    size = matrix.shape[0]
    scale = float(np.abs(matrix).max(initial=0.0))
    nothing = np.zeros(size)
    if size < 2 or scale == 0.0:
        return nothing
    ridge = 1e-10 * scale
    system = 10.0 * scale - centred(matrix)
    system.flat[:: size + 1] += ridge
    factor, info = dpotrf(system, lower=1)
    if info != 0:
        return nothing
    inverse = dpotri(factor, lower=1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = 1.0 / np.diagonal(inverse)
    weights = np.where(weights > 1e3 * ridge, weights, 0.0)
    if not weights.any():
        return nothing
    roots = np.sqrt(weights)
    largest = float(eigh(inverse * roots[:, None] * roots, eigvals_only=True, subset_by_index=[size - 1, size - 1])[0])
    # The ridge was added before, so twice of it is taken away: what remains is concave beyond rounding.
    shift: Array = weights * ((1.0 - 1e-6) / largest) - 2.0 * ridge
    return shift if float(shift.sum()) > 0.0 else nothing


def centring_steps(matrix: Array, shift: Array, weights: Array, barrier: float, steps: int) -> Array:
    r"""Newton steps towards the u that maximises $\sum w_iu_i+\mu\log\det(K-\mathrm{diag}\,u)$, K = -A on the plane.

    A shift u lowers the relaxation at z by sum u_i z_i (1 - z_i)/2, so with w_i = z_i (1 - z_i)/2 and mu -> 0 this is
    the best shift for that z; alternated with the relaxation it approaches the semidefinite bound. The logarithm keeps
    A + diag u concave all along. O(n^3) per step.

    Args:
        matrix: (n, n) A.
        shift: (n,) u to start from, strictly inside: A + diag u negative definite on the plane.
        weights: (n,) w > 0.
        barrier: mu > 0.
        steps: at most so many.

    Returns:
        (n,) a better u, still inside; the given one when it is not inside or the numbers fail.
    """
    kernel = 10.0 * float(np.abs(matrix).max()) - centred(matrix)
    for _ in range(steps):
        factor, info = dpotrf(kernel - np.diag(shift), lower=1)
        if info != 0:
            return shift
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        slope = weights - barrier * np.diagonal(inverse)
        curvature = barrier * inverse * inverse
        curvature.flat[:: shift.size + 1] += 1e-10 * float(np.trace(curvature)) / shift.size
        _, step, info = dposv(curvature, slope)
        if info != 0:
            return shift
        # The Newton decrement: below 1 the full step stays inside, above it a step of that length does.
        decrement = float(np.sqrt(max(0.0, slope @ step) / barrier))
        shift = shift + step * (1.0 if decrement <= 0.5 else 0.95 / (decrement + 0.45))
        if decrement < 0.3:
            break
    return shift


def base_shift(matrix: Array) -> float:
    """For a matrix that is not of negative type: the u <= 0 for which A + u I is concave on the plane. O(n^3)."""
    largest = float(np.abs(matrix).max(initial=0.0))
    eigenvalue = float(np.linalg.eigvalsh(centred(matrix))[-1])
    return -max(0.0, eigenvalue) - concavity_margin(matrix.shape[0], largest)
