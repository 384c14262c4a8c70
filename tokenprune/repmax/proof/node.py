"""One node of the search: a subproblem in which some points are in, some out, and the rest free."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

from tokenprune.repmax.problem.clones import close_under_order, ranks
from tokenprune.repmax.problem.distances import Array
from tokenprune.repmax.problem.objective import Indices, Problem
from tokenprune.repmax.problem.relaxation import Tangent, centred
from tokenprune.repmax.problem.shift import base_shift


@dataclass(frozen=True, eq=False)
class Node:
    r"""Which points are decided, and the objective on the others.

    With `chosen` in the set, F of the whole is $\frac12 z^\top Az+b^\top z+\text{constant}$ over the free points.

    Attributes:
        free: (f,) undecided points, ascending.
        chosen: points that are in.
        linear: (f,) b: linear term plus distances to the chosen points.
        constant: F of the chosen points alone.
        shift: (f,) diagonal u added to A (u/2 is taken from b); it leaves F of sets as it is.
        shift_size: number of free points for which u was made; a smaller block admits a larger shift.
        warm: (f,) where to start the relaxation.
        bound: best known upper bound on F of every set of this node, `Problem.slack` included.
        record: number of this node in the proof.
    """

    free: Indices
    chosen: Indices
    linear: Array
    constant: float
    shift: Array
    shift_size: int
    warm: Array
    bound: float
    record: int = 0

    @classmethod
    def root(cls, problem: Problem, warm: Array, *, shift: Array | None = None) -> "Node":
        """Nothing decided. A matrix that is not of negative type gets the uniform shift that makes it concave."""
        if shift is None:
            shift = np.full(problem.n, 0.0 if problem.negative_type else base_shift(problem.matrix))
        return cls(
            free=np.arange(problem.n, dtype=np.int64),
            chosen=np.empty(0, dtype=np.int64),
            linear=problem.linear.copy(),
            constant=0.0,
            shift=shift,
            shift_size=2 * problem.n,
            warm=warm,
            bound=np.inf,
        )

    def open_places(self, problem: Problem) -> int:
        """How many of the free points are still to be chosen."""
        return problem.k - int(self.chosen.size)

    def shifted(self, problem: Problem) -> tuple[Array, Array]:
        """A and b of the free points with the shift in them. Clones share one shift, see `clones`."""
        block: Array = problem.matrix[np.ix_(self.free, self.free)]
        if not problem.has_clones:
            block.flat[:: self.free.size + 1] += self.shift
            return block, self.linear - self.shift / 2.0
        classes = problem.classes[self.free]
        block += np.where(classes[:, None] == classes[None], self.shift, 0.0)
        return block, self.linear - self.shift * (ranks(classes) - 0.5)

    def decide(self, problem: Problem, ones: NDArray[np.bool_], zeros: NDArray[np.bool_], **changes: object) -> "Node":
        """The node with the free points marked `ones` taken in and those marked `zeros` left out.

        Where there are clones, what their order implies is decided as well.
        """
        if problem.has_clones:
            ones, zeros = close_under_order(problem.classes[self.free], ones, zeros)
        rest = ~(ones | zeros)
        new = self.free[ones]
        across = problem.matrix[np.ix_(self.free[rest], new)].sum(axis=1)
        gained = float(self.linear[ones].sum()) + float(problem.matrix[np.ix_(new, new)].sum()) / 2.0
        values: dict[str, object] = {
            "free": self.free[rest],
            "chosen": np.concatenate([self.chosen, new]),
            "linear": self.linear[rest] + across,
            "constant": self.constant + gained,
            "shift": self.shift[rest],
            "shift_size": self.shift_size,
            "warm": self.warm[rest],
            "bound": self.bound,
            "record": self.record,
        }
        values.update(changes)
        return Node(**values)  # type: ignore[arg-type]


def completion(node: Node, problem: Problem) -> tuple[float, Indices] | None:
    """The only set left in the node with its F, when there is only one; F is minus infinity when there is none."""
    places = node.open_places(problem)
    if 0 < places < node.free.size:
        return None
    if places < 0 or places > node.free.size:
        return -np.inf, node.chosen
    members = node.chosen if places == 0 else np.concatenate([node.chosen, node.free])
    members = np.sort(members)
    return problem.total(members), members


def exclusion_bounds(tangent: Tangent, places: int) -> tuple[Array, Array]:
    """For each free point: the tangent bound over the sets that contain it, and over those that do not.

    With g_(q) the q-th largest gradient entry, forcing point j in costs g_(q) - g_j when j is not among the q
    largest, and forcing it out costs g_j - g_(q+1) when it is.
    """
    g = tangent.gradient
    ordered = np.partition(g, [g.size - places - 1, g.size - places])
    inside = tangent.bound - np.maximum(ordered[g.size - places] - g, 0.0)
    outside = tangent.bound - np.maximum(g - ordered[g.size - places - 1], 0.0)
    return inside, outside


def branching_point(quadratic: Array, z: Array) -> int:
    """The free point whose two branches promise the largest falls of the bound.

    Moving z_j by t and re-optimising the other fractional points costs about t^2 / (2 (K^-1)_jj), K = -A on the
    plane of the fractional points; the product of both sides' costs is the score. Cheaper than trying, and far better
    than the most fractional point where some points are nearly explained by others.
    """
    rows = np.flatnonzero((z > 1e-6) & (z < 1.0 - 1e-6))
    if rows.size == 0:
        return int(np.abs(z - 0.5).argmin())
    block = quadratic[np.ix_(rows, rows)]
    scale = float(np.abs(block).max()) or 1.0
    system = scale - centred(block)
    system.flat[:: rows.size + 1] += 1e-9 * scale
    factor, info = dpotrf(system, lower=1)
    stiffness = np.ones(rows.size) if info != 0 else 1.0 / np.diagonal(dpotri(factor, lower=1)[0])
    return int(rows[(z[rows] * (1.0 - z[rows]) * stiffness).argmax()])
