"""The independent check of a proof tree: plain bookkeeping on a status vector, no search, no trust in any number.

It shares with the solver only the distance matrix, the tangent formula and the Cholesky test, each a few lines that
are tested against exhaustive search; it does not use the solver's nodes, bounds or decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenprune.repmax.problem.clones import close_under_order, ranks, representatives, spread
from tokenprune.repmax.problem.distances import Array
from tokenprune.repmax.problem.objective import Problem
from tokenprune.repmax.problem.relaxation import Tangent, on_plane, tangent_at
from tokenprune.repmax.problem.shift import is_concave
from tokenprune.repmax.proof.tree import Record, Step


class ProofError(ValueError):
    """The evidence does not prove what it is said to prove."""


@dataclass(eq=False)
class _State:
    """What is decided at a place in the tree: status 1 in, 0 out, -1 free; the shift in force; the bound so far."""

    status: NDArray[np.int8]
    shift: Array
    bound: float

    def copy(self) -> "_State":
        return _State(self.status.copy(), self.shift.copy(), self.bound)


def proved_bound(problem: Problem, tree: Sequence[Record], claimed: float) -> float:
    """The bound on F that the tree proves, `Problem.slack` included.

    Args:
        problem: built afresh from the tokens; 0 < k < n.
        tree: records, parents before children.
        claimed: the bound on F that the decisions of the tree rely on.

    Returns:
        The largest F that any k-subset may have; at most about `claimed` for a sound tree.

    Raises:
        ProofError: when a step is malformed, a shift is not concave, or a decision is not justified.
    """
    if not tree or tree[0].parent != -1:
        raise ProofError("the tree has no root")
    children: list[dict[bool, int]] = [{} for _ in tree]
    for number, record in enumerate(tree[1:], start=1):
        if not 0 <= record.parent < number:
            raise ProofError(f"record {number} has no parent before it")
        siblings = children[record.parent]
        if record.taken in siblings or any(tree[other].point != record.point for other in siblings.values()):
            raise ProofError(f"record {number} is no proper branch")
        siblings[record.taken] = number
    walk = _Walk(problem, claimed + 2.0 * problem.slack)
    start = _State(np.full(problem.n, -1, dtype=np.int8), np.zeros(problem.n), np.inf)
    if tree[0].steps and tree[0].steps[0].shift is None and not problem.negative_type:
        raise ProofError("the matrix is not of negative type and the tree does not shift it")
    waiting = [(0, start)]
    worst = -np.inf
    while waiting:
        number, state = waiting.pop()
        settled = walk.follow(tree[number], state)
        if settled is not None:
            worst = max(worst, settled)
            continue
        branches = children[number]
        if len(branches) < 2:  # what no child covers has the bound of this node
            worst = max(worst, state.bound)
        for taken, child in branches.items():
            waiting.append((child, walk.branch(state, tree[child].point, taken)))
    return max(worst, walk.excluded)


class _Walk:
    """Checks the steps of one record after the other; `excluded` is the largest bound of what they ruled out."""

    def __init__(self, problem: Problem, limit: float) -> None:
        self.problem, self.limit, self.excluded = problem, limit, -np.inf

    def follow(self, record: Record, state: _State) -> float | None:
        """Apply the record's steps to the state; the bound of all its sets when nothing is left open, else None."""
        for step in record.steps:
            settled = self._settled(state.status)
            if settled is not None:
                return settled
            free = np.flatnonzero(state.status < 0)
            if step.shift is not None:
                self._take_shift(step.shift, state, free)
            if step.z.size == 0:
                continue
            tangent, extra = self._tangent(step, state, free)
            state.bound = min(state.bound, tangent.bound + extra)
            if not self._decide(step, tangent, extra, state, free):
                return -np.inf  # some point can be neither in nor out
        return self._settled(state.status)

    def branch(self, state: _State, point: int, taken: bool) -> _State:
        """The state after deciding a free point."""
        if not 0 <= point < self.problem.n or state.status[point] >= 0:
            raise ProofError(f"branch on point {point}, which is not free")
        result = state.copy()
        result.status[point] = taken
        if not self._close(result.status):
            raise ProofError(f"branch on point {point} contradicts the order of its clones")
        return result

    def _settled(self, status: NDArray[np.int8]) -> float | None:
        inside = np.flatnonzero(status == 1)
        free = np.flatnonzero(status < 0)
        places = self.problem.k - inside.size
        if places < 0 or places > free.size:
            return -np.inf
        if 0 < places < free.size:
            return None
        members = inside if places == 0 else np.concatenate([inside, free])
        return self.problem.total(members.astype(np.int64))

    def _take_shift(self, shift: Array, state: _State, free: NDArray[np.int64]) -> None:
        if shift.shape != free.shape or not np.isfinite(shift).all():
            raise ProofError("a shift does not fit the free points")
        classes = self.problem.classes[free]
        first = representatives(classes)
        if (shift != spread(shift[first], classes)).any():
            raise ProofError("clones have different shifts")
        block = self.problem.matrix[np.ix_(free[first], free[first])] + np.diag(shift[first])
        if not is_concave(block):
            raise ProofError("a shifted relaxation is not concave")
        state.shift[free] = shift

    def _tangent(self, step: Step, state: _State, free: NDArray[np.int64]) -> tuple[Tangent, float]:
        """The tangent at the step's point over the free points, and what to add for the decided ones."""
        if step.z.shape != free.shape or not np.isfinite(step.z).all():
            raise ProofError("a point of tangency does not fit the free points")
        problem, inside = self.problem, np.flatnonzero(state.status == 1)
        shift, classes = state.shift[free], problem.classes[free]
        quadratic = problem.matrix[np.ix_(free, free)] + (classes[:, None] == classes[None]) * shift
        linear = (
            problem.linear[free] + problem.matrix[np.ix_(free, inside)].sum(axis=1) - shift * (ranks(classes) - 0.5)
        )
        places = problem.k - inside.size
        tangent = tangent_at(quadratic, linear, places, on_plane(step.z, places))
        return tangent, problem.total(inside.astype(np.int64)) + problem.slack

    def _decide(self, step: Step, tangent: Tangent, extra: float, state: _State, free: NDArray[np.int64]) -> bool:
        """Check and apply what the step fixes; False when it contradicts itself, which closes the node."""
        places = self.problem.k - int((state.status == 1).sum())
        descending = np.sort(tangent.gradient)[::-1]
        position = {int(point): place for place, point in enumerate(free)}
        for points, taken in ((step.zeros, False), (step.ones, True)):
            for point in points.tolist():
                if point not in position:
                    raise ProofError(f"point {point} is fixed but was not free")
                g = tangent.gradient[position[point]]
                # The best set that does the opposite swaps this point with the cheapest partner.
                loss = g - descending[places] if taken else descending[places - 1] - g
                opposite = tangent.bound - max(loss, 0.0) + extra
                if opposite > self.limit:
                    raise ProofError(f"point {point} is fixed although sets up to {opposite} may do otherwise")
                self.excluded = max(self.excluded, opposite)
        if np.intersect1d(step.ones, step.zeros).size:
            return False
        state.status[step.ones], state.status[step.zeros] = 1, 0
        return self._close(state.status)

    def _close(self, status: NDArray[np.int8]) -> bool:
        """Clones are taken in order of index: complete the decisions. False when they contradict that order."""
        if not self.problem.has_clones:
            return True
        ones, zeros = close_under_order(self.problem.classes, status == 1, status == 0)
        if bool((ones & zeros).any()):
            return False
        status[ones], status[zeros] = 1, 0
        return True
