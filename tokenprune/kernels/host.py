"""The greedy loops in NumPy, for tensors in the host's memory: a step costs one microsecond, not ten.

Each loop first walks on as fast as it can and writes down every score. Then all its steps are looked at together:
where only one token is within rounding of the best, no other way of computing the scores could have chosen another.
The few steps where several are go to `Rule.decide`, and if that chooses another token, the walk starts anew from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenprune.kernels.loops import DEPENDENT, TIED_RESIDUAL

Matrix: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]
Row: TypeAlias = Callable[[int], Matrix]
ScoredRow: TypeAlias = Callable[[int, Matrix], Matrix]
"""Of a token and the scores by which it is picked its row."""
Decide: TypeAlias = Callable[[Indices, Indices], int]
"""Of the tokens picked so far and those that may come next, ascending, the one that does."""

_STEPS = 64  # that are walked before they are looked at: their scores stay in the cache


def lowest(picked: Indices, candidates: Indices) -> int:
    """Ties go to the lowest index."""
    del picked
    return int(candidates[0])


@dataclass(frozen=True)
class Rule:
    """What comes next, and how sure the scores are.

    Attributes:
        objective: "sum": the largest sum of entries to those picked; "min": the largest smallest entry.
        dtype: of the scores.
        per_step: a token that is this much below the best may still be the best; for "sum", times the tokens picked.
        adding: rounding of one addition, relative to the largest entry (1); 0 where `per_step` covers it.
        decide: chooses among tokens that may be the best.
    """

    objective: Literal["sum", "min"]
    dtype: np.dtype[Any]
    per_step: float
    adding: float = 0.0
    decide: Decide = lowest

    @property
    def combine(self) -> np.ufunc:
        """How a new row changes the scores."""
        return np.add if self.objective == "sum" else np.minimum

    @property
    def start(self) -> float:
        """Scores before the first pick."""
        return 0.0 if self.objective == "sum" else np.inf

    def windows(self, picks: int) -> Matrix:
        """How far below the best a candidate may be, when 1, 2, ... tokens of that many are picked."""
        if self.objective == "min":
            return np.full(picks - 1, self.per_step, dtype=self.dtype)
        picked = np.arange(1, picks, dtype=self.dtype)
        return np.asarray((self.adding * picked + self.per_step) * picked)


def walk(row: Row, n: int, keep: int, first: int, rule: Rule) -> Indices:
    """Greedy picks of one image; `row(i)` is row i of its matrix."""
    order = np.empty(keep, dtype=np.int64)
    order[0] = first
    return _walk_on(row, order, 1, np.full(n, rule.start, dtype=rule.dtype), rule)


def _walk_on(row: Row, order: Indices, done: int, scores: Matrix, rule: Rule) -> Indices:
    """Fill `order` from `done` picks on; `scores` are those before the last of them."""
    combine, keep, windows = rule.combine, len(order), rule.windows(len(order))
    history = np.empty((min(_STEPS, keep - done), len(scores)), dtype=rule.dtype)
    while done < keep:
        pick = order[done - 1]
        steps = history[: keep - done]
        for step, now in enumerate(steps, start=done):
            combine(scores, row(pick), out=now)
            now[pick] = -np.inf
            order[step] = pick = now.argmax()
            scores = now
        right = _first_correction(order, done, steps, windows[done - 1 :], rule.decide)
        done += right
        scores = steps[right - 1]  # before the last pick, whose row the next step adds
    return order


def _first_correction(order: Indices, done: int, steps: Matrix, windows: Matrix, decide: Decide) -> int:
    """How many of the steps hold, the last of them possibly corrected in `order`."""
    count = len(steps)
    floor = steps[np.arange(count), order[done : done + count]] - windows[:count]
    near = steps >= floor[:, None]
    if np.count_nonzero(near) == count:
        return count
    for step in _with_several(near):
        pick = decide(order[: done + step], np.flatnonzero(near[step]))
        if pick != order[done + step]:
            order[done + step] = pick
            return int(step) + 1
    return count


def _with_several(near: NDArray[np.bool_]) -> list[int]:
    """The rows, counted over all axes but the last, that are True more than once; counting every row costs more."""
    rows = np.flatnonzero(near) // near.shape[-1]
    return sorted(set(rows[1:][rows[1:] == rows[:-1]].tolist()))


def walk_together(matrix: Matrix, keeps: Sequence[int], first: Indices, rules: Sequence[Rule]) -> list[Indices]:
    """Greedy picks of several images, (b, n, n), which share the call overhead of each step."""
    batch, n, _ = matrix.shape
    rule, most = rules[0], max(keeps)
    order = np.empty((batch, most), dtype=np.int64)
    order[:, 0] = first
    history = np.empty((most - 1, batch, n), dtype=rule.dtype)
    scores = np.full((batch, n), rule.start, dtype=rule.dtype)
    rows, chosen = matrix.reshape(batch * n, n), np.empty((batch, n), dtype=matrix.dtype)
    offset = np.arange(batch) * n
    pick = first
    for step, now in enumerate(history, start=1):
        place = offset + pick
        np.take(rows, place, axis=0, out=chosen, mode="clip")  # any mode but "raise" writes without a buffer
        rule.combine(scores, chosen, out=now)
        now.reshape(-1)[place] = -np.inf
        pick = now.argmax(axis=1)
        order[:, step] = pick
        scores = now
    if most > 1:
        best = np.take_along_axis(history, order[:, 1:].T[:, :, None], axis=2)
        near = history >= (best[..., 0] - rule.windows(most)[:, None])[..., None]
        if np.count_nonzero(near) > near.shape[0] * batch:
            for image in sorted({row % batch for row in _with_several(near)}):
                _correct(matrix[image], order[image], history[:, image], keeps[image], rules[image])
    return [picks[:keep] for picks, keep in zip(order, keeps, strict=True)]


def _correct(matrix: Matrix, order: Indices, history: Matrix, keep: int, rule: Rule) -> None:
    """Look at the steps of one image; from the first that another token wins it walks alone."""
    if keep == 1:
        return
    right = _first_correction(order, 1, history[: keep - 1], rule.windows(keep), rule.decide)
    if right + 1 < keep:
        _walk_on(matrix.__getitem__, order[:keep], right + 1, history[right - 1], rule)


def max_determinant(row: ScoredRow, keep: int, quality: Matrix, last_resort: Matrix) -> Indices:
    """One image; `row(i, scores)` is row i of its kernel. See `loops.max_determinant`."""
    n = len(quality)
    order = np.empty(keep, dtype=np.int64)
    residual = quality.copy()
    limit = quality * quality.dtype.type(DEPENDENT)
    slack = quality.max() * TIED_RESIDUAL
    factors = np.zeros((keep, n), dtype=quality.dtype)
    # Once picked, a token ranks below the last resorts, which are at least -2; as dependent it stays there.
    ranked = last_resort.copy()
    for step in range(keep):
        dependent = residual <= limit
        scores = np.where(dependent, ranked, residual)
        best = scores.max()
        # A last resort is negative: the quality over the largest one, less 2.
        tied = ~dependent & (scores >= best - slack) if best > 0 else scores >= best - TIED_RESIDUAL
        pick = tied.argmax()
        order[step] = pick
        if not dependent[pick]:
            new = row(int(pick), residual) - factors[:step, pick] @ factors[:step]
            new /= np.sqrt(residual[pick])
            residual -= new * new
            factors[step] = new
        residual[pick] = ranked[pick] = -np.inf
    return order
