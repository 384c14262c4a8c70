"""Exhaustive search in vectorised blocks: the plainest exact solver, for tiny sets and as a check on the others."""

import math
import time
from itertools import chain, combinations, islice

import numpy as np

from tokenprune.repmax.problem.objective import Indices, Problem

_BLOCK = 1 << 15


def subsets(problem: Problem) -> int:
    """Number of k-subsets."""
    return math.comb(problem.n, problem.k)


def enumerate_best(problem: Problem, *, time_limit: float | None = None) -> tuple[Indices, float, bool]:
    """The best of all k-subsets: (ascending indices, F, whether all were seen); of equals the first in sorted order.

    Examples:
        >>> from tokenprune.repmax.problem.objective import prepare
        >>> cloud = prepare(np.array([[0.0], [1.0], [5.0]]), 2, distance="euclidean", owner="demo")
        >>> enumerate_best(cloud)
        (array([0, 2]), 5.0, True)
    """
    start = time.perf_counter()
    best, value = np.arange(problem.k, dtype=np.int64), -np.inf
    stream = combinations(range(problem.n), problem.k)
    while True:
        flat = np.fromiter(chain.from_iterable(islice(stream, _BLOCK)), dtype=np.int64)
        if flat.size == 0:
            break
        sets = flat.reshape(-1, problem.k)
        values = problem.linear[sets].sum(axis=1)
        for i in range(1, problem.k):
            values += problem.matrix[sets[:, i, None], sets[:, :i]].sum(axis=1)
        place = int(values.argmax())
        if values[place] > value:
            best, value = sets[place].copy(), float(values[place])
        if time_limit is not None and time.perf_counter() - start >= time_limit:
            # Complete only if the stream is empty by chance.
            return best, problem.total(best), next(stream, None) is None
    return best, problem.total(best), True
