r"""RepMax as a mixed-integer linear program for HiGHS, through scipy.

With y_ij standing for z_i z_j: maximise sum d_ij y_ij + b'z subject to y_ij <= z_i, y_ij <= z_j, sum z = k and the
rows of the reformulation-linearisation technique (RLT), sum_j y_ij = (k-1) z_i, which are sum z = k multiplied by z_i.
The RLT rows are what makes it solvable at all: seconds instead of no proof at n = 24. It ends at n of 40 to 60; its use
is as an oracle that shares nothing with the branch and bound. `glover` is the compact alternative with n instead of
n^2/2 extra variables (Glover 1975), for the benchmark.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_matrix, csr_matrix, hstack, identity, vstack

from tokenprune.repmax.problem.objective import Indices, Problem


def solve_milp(
    problem: Problem, *, time_limit: float | None = None, formulation: str = "rlt", rel_gap: float = 1e-9
) -> tuple[Indices | None, float, bool, int]:
    """Solve with HiGHS.

    Args:
        problem: 0 < k <= n.
        time_limit: seconds, None for none.
        formulation: "rlt" or "glover".
        rel_gap: relative gap at which HiGHS stops. Its feasibility tolerance of 1e-6 to 1e-7 limits what that means.

    Returns:
        (ascending indices or None when no set was found, upper bound on F, whether HiGHS claims optimality, nodes).
    """
    cost, constraints, bounds, integral = _rlt(problem) if formulation == "rlt" else _glover(problem)
    limit = np.inf if time_limit is None else max(time_limit, 1e-3)
    result = milp(
        cost,
        integrality=integral,
        bounds=bounds,
        constraints=constraints,
        options={"mip_rel_gap": rel_gap, "time_limit": limit},
    )
    indices = _members(problem, result)
    bound = getattr(result, "mip_dual_bound", None)
    nodes = getattr(result, "mip_node_count", None)
    upper = np.inf if bound is None or not np.isfinite(bound) else -float(bound)
    return indices, upper, result.status == 0, int(nodes or 0)


def _members(problem: Problem, result: OptimizeResult) -> Indices | None:
    if result.x is None:
        return None
    chosen = np.argsort(-result.x[: problem.n], kind="stable")[: problem.k]
    return np.sort(chosen).astype(np.int64)


_Program = tuple[np.ndarray, list[LinearConstraint], Bounds, np.ndarray]


def _rlt(problem: Problem) -> _Program:
    n, k = problem.n, problem.k
    first, second = np.triu_indices(n, 1)
    edges = np.arange(first.size)
    ones = np.ones(first.size)
    shape = (first.size, n)
    at_first, at_second = (coo_matrix((ones, (edges, ends)), shape=shape) for ends in (first, second))
    eye = identity(first.size)
    below = vstack([hstack([-at_first, eye]), hstack([-at_second, eye])])
    degree = hstack([identity(n) * -(k - 1.0), (at_first + at_second).T])
    size = hstack([csr_matrix(np.ones((1, n))), csr_matrix((1, first.size))])
    constraints = [
        LinearConstraint(csr_matrix(below), -np.inf, 0.0),
        LinearConstraint(csr_matrix(degree), 0.0, 0.0),
        LinearConstraint(csr_matrix(size), k, k),
    ]
    cost = -np.concatenate([problem.linear, problem.matrix[first, second]])
    integral = np.concatenate([np.ones(n), np.zeros(first.size)])
    return cost, constraints, Bounds(0.0, 1.0), integral


def _glover(problem: Problem) -> _Program:
    """w_i stands for z_i sum_j d_ij z_j / 2: w_i <= U_i z_i and w_i <= sum_j d_ij z_j / 2 - L_i (1 - z_i)."""
    n, k = problem.n, problem.k
    half = problem.matrix / 2.0
    off = np.sort(half + np.diag(np.full(n, np.nan)), axis=1)[:, : n - 1]  # NaN sorts to the end
    most, least = off[:, n - k :].sum(axis=1), off[:, :k].sum(axis=1) if k < n else off.sum(axis=1)
    eye = identity(n)
    above = hstack([-identity(n).multiply(most[:, None]), eye])
    linked = hstack([csr_matrix(-half) - identity(n).multiply(least[:, None]), eye])
    size = hstack([csr_matrix(np.ones((1, n))), csr_matrix((1, n))])
    constraints = [
        LinearConstraint(csr_matrix(above), -np.inf, 0.0),
        LinearConstraint(csr_matrix(linked), -np.inf, -least),
        LinearConstraint(csr_matrix(size), k, k),
    ]
    cost = -np.concatenate([problem.linear, np.ones(n)])
    bounds = Bounds(np.zeros(2 * n), np.concatenate([np.ones(n), np.maximum(most, 0.0)]))
    integral = np.concatenate([np.ones(n), np.zeros(n)])
    return cost, constraints, bounds, integral
