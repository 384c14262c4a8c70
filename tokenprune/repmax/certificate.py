"""Certificates: how far a given set is at most from the best one, with evidence that anyone can check."""

import math
import time
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np

from tokenprune.core.fields import check_choice
from tokenprune.repmax.bnb import Search
from tokenprune.repmax.clones import representatives, spread
from tokenprune.repmax.distances import Array, DistanceOrMatrix, Features
from tokenprune.repmax.local_search import swap_search
from tokenprune.repmax.node import Node
from tokenprune.repmax.objective import (
    Indices,
    Problem,
    Quality,
    check_indices,
    normalised_gap,
    prepare,
    relative_gap,
)
from tokenprune.repmax.proof import Record, Step
from tokenprune.repmax.relaxation import relax, tangent_at
from tokenprune.repmax.shift import is_concave, residual_shift
from tokenprune.repmax.verification import ProofError, proved_bound

Effort = Literal["tangent", "convex", "shifted", "exact"]

_TOLERANCE = 1e-9  # relative agreement that verification asks for


@dataclass(frozen=True, eq=False)
class Certificate:
    """A set's value, an upper bound on the value of every set of its size, and the evidence for the bound.

    Values are means over pairs (plus the mean quality, where given). The evidence is a point `z`, whose tangent to the
    concave relaxation is the bound; or `z` with a diagonal shift `u`; or, for effort "exact", a search `tree`.

    Attributes:
        indices: int64 (k,) ascending, the set.
        value: its mean pairwise distance.
        upper_bound: no set of k points exceeds this.
        random_value: exact expectation over random sets of k points.
        n: number of points chosen from.
        distance: as in `distance_matrix`.
        effort: how the bound was found.
        seconds: wall time that took.
        with_quality: whether a linear term was part of it; `verify` then needs the same.
        z: (n,) point of tangency, None for "exact".
        u: (n,) diagonal shift, or None.
        tree: the search tree for "exact", else empty.
        digest: SHA-256 of all of the above as `certify` made it, by which `verify` finds changes that nothing else can
            show, for example of `seconds`; "" for a certificate made by hand.
    """

    indices: Indices
    value: float
    upper_bound: float
    random_value: float
    n: int
    distance: DistanceOrMatrix
    effort: Effort
    seconds: float
    with_quality: bool = False
    z: Array | None = None
    u: Array | None = None
    tree: tuple[Record, ...] = ()
    digest: str = ""

    @property
    def k(self) -> int:
        """Size of the set."""
        return int(self.indices.size)

    @property
    def gap(self) -> float:
        """(upper_bound - value) / upper_bound: the set is at most this share below the best. 0 when both are 0."""
        return relative_gap(self.value, self.upper_bound)

    @property
    def ratio(self) -> float:
        """1 - gap."""
        return 1.0 - self.gap

    @property
    def normalised_gap(self) -> float:
        """(upper_bound - value) / (upper_bound - random_value): 0 is optimal, 1 is no better than random."""
        return normalised_gap(self.value, self.upper_bound, self.random_value)

    def verify(self, x: Features, *, quality: Quality | None = None) -> bool:
        """Check everything from the tokens alone; False when anything does not hold. See `problems` for what.

        Args:
            x: the tokens (or the matrix) that the certificate is about.
            quality: the linear term, when there was one.
        """
        return not self.problems(x, quality=quality)

    def problems(self, x: Features, *, quality: Quality | None = None) -> list[str]:
        """What is wrong with the certificate, in words; empty when it holds."""
        try:
            return self._problems(x, quality)
        except Exception as error:  # whatever the evidence is made of: it does not prove anything
            return [str(error) or type(error).__name__]

    def _problems(self, x: Features, quality: Quality | None) -> list[str]:
        owner = "Certificate.verify"
        malformed = self._malformed(owner)
        if malformed:
            return malformed
        if (quality is not None) != self.with_quality:
            return [f"{owner}: made {'with' if self.with_quality else 'without'} quality; pass the same to verify"]
        if len(x) != self.n:
            return [f"{owner}: is about {self.n} points, got {len(x)}"]
        indices = check_indices(self.indices, self.n, owner)
        problem = prepare(x, indices.size, distance=self.distance, quality=quality, owner=owner)
        found = []
        for name, recomputed in (
            ("value", problem.total(indices) / problem.pairs),
            ("random_value", problem.random_total() / problem.pairs),
            ("upper_bound", self._recomputed_bound(problem)),
        ):
            claimed = getattr(self, name)
            allowed = _TOLERANCE * abs(recomputed) + 4.0 * problem.slack / problem.pairs
            if not (np.isfinite(recomputed) and abs(claimed - recomputed) <= allowed):  # a NaN claim fails too
                found.append(f"{owner}: {name} is {recomputed!r}, the certificate says {claimed!r}")
        if not self.value <= self.upper_bound:
            found.append(f"{owner}: value {self.value!r} exceeds upper_bound {self.upper_bound!r}")
        return found

    def _malformed(self, owner: str) -> list[str]:
        """What can be seen without the tokens: wrong kinds of values, and evidence that is not that of the effort."""
        numbers = {name: getattr(self, name) for name in ("value", "upper_bound", "random_value", "seconds", "n")}
        found = [
            f"{owner}: {name} must be a number, not {number!r}"
            for name, number in numbers.items()
            if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating))
        ]
        if found:
            return found
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            found.append(f"{owner}: seconds is {self.seconds!r}")
        if not (isinstance(self.tree, tuple) and isinstance(self.digest, str)):
            found.append(f"{owner}: tree must be a tuple and digest a text")
        if self.effort not in get_args(Effort) or not isinstance(self.with_quality, bool):
            found.append(f"{owner}: effort is {self.effort!r}, with_quality is {self.with_quality!r}")
        searched = self.effort == "exact" and self.k not in (0, self.n)
        if searched != (self.z is None) or searched != bool(self.tree) or (searched and self.u is not None):
            found.append(f"{owner}: the evidence is not that of effort {self.effort!r}")
        elif self.effort == "tangent" and not np.array_equal(np.asarray(self.z), self._at_set()):
            found.append(f"{owner}: z is not the set, at which effort 'tangent' takes its tangent")
        if self.digest:
            from tokenprune.repmax.serialise import content_digest

            if content_digest(self) != self.digest:
                found.append(f"{owner}: something was changed after the certificate was made (digest)")
        return found

    def _at_set(self) -> Array:
        """(n,) 1.0 at the points of the set, else 0.0."""
        return np.isin(np.arange(self.n), self.indices).astype(np.float64)

    def _recomputed_bound(self, problem: Problem) -> float:
        if problem.k in (0, problem.n):
            return problem.total(np.arange(problem.k, dtype=np.int64)) / problem.pairs
        tree = self.tree
        if self.effort != "exact":
            if self.z is None:
                raise ProofError("Certificate.verify: there is no point of tangency")
            nobody = np.empty(0, dtype=np.int64)
            z, u = (
                np.asarray(self.z, dtype=np.float64),
                None if self.u is None else np.asarray(self.u, dtype=np.float64),
            )
            tree = (Record(-1, -1, False, [Step(z, u, nobody, nobody)]),)
        bound = proved_bound(problem, tree, self.upper_bound * problem.pairs)
        return max(bound, problem.total(self.indices)) / problem.pairs

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays, for a JSON log."""
        names = ("value", "upper_bound", "gap", "normalised_gap", "random_value", "n", "k", "distance", "effort")
        return {name: getattr(self, name) for name in (*names, "seconds", "with_quality")}

    def save(self, path: str | PathLike[str]) -> None:
        """Write one .npz file: a JSON header and plain arrays, no pickle."""
        from tokenprune.repmax.serialise import save_certificate

        save_certificate(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> "Certificate":
        """Read what `save` wrote. Nothing in it is trusted: call `verify`.

        Raises:
            ValueError: when the file is no certificate, is cut or damaged, or was changed after it was written.
        """
        from tokenprune.repmax.serialise import load_certificate

        return load_certificate(path)


def certify(
    x: Features,
    indices: object,
    *,
    distance: DistanceOrMatrix = "cosine",
    effort: Effort = "shifted",
    time_limit: float | None = None,
    quality: Quality | None = None,
) -> Certificate:
    r"""Bound how far a set is from the best set of its size.

    "tangent": the tangent at the set itself, $f(S^*)\le\mathrm{top}_k(D1_S)-f(S)$: one matrix-vector product. Typical
    for 576 clustered tokens after local search: 0.3 to 1.5 % (k = 32), 0.1 to 0.4 % (64), 0.03 % (192).
    "convex": the tangent at the maximum of the relaxation; 0.05 to 0.2 % / 0.01 to 0.05 % / 0.004 %.
    "shifted" (default): the same after a diagonal shift; helps for euclidean and angular, less for cosine.
    "exact": branch and bound with the whole tree kept as evidence; normally 1e-9.

    Works for sets from any method: the bound is about the best set of k points, however the given one was found.

    Args:
        x: (n, d) features of any real dtype, or (n, n) distances with distance="precomputed".
        indices: the set, k unique rows of x.
        distance: "cosine" (default), "euclidean", "sqeuclidean", "angular" or "precomputed".
        effort: see above.
        time_limit: seconds, for "exact"; when it runs out the bound is what was proved until then.
        quality: (n,) linear term; the value becomes mean pairwise distance + mean quality.

    Returns:
        A `Certificate`; its `verify(x)` recomputes everything.

    Raises:
        TypeError: for wrong types.
        ValueError: for indices out of range or repeated, an unknown distance or effort, NaN or infinity in x.

    Examples:
        >>> cloud = np.array([[0.0], [1.0], [5.0], [6.0]])
        >>> certificate = certify(cloud, [0, 2], distance="euclidean", effort="exact")
        >>> certificate.value, round(certificate.upper_bound, 6), certificate.verify(cloud)
        (5.0, 6.0, True)
    """
    start = time.perf_counter()
    check_choice("certify", "effort", effort, get_args(Effort))
    chosen = check_indices(indices, len(x), "certify")
    problem = prepare(x, chosen.size, distance=distance, quality=quality, owner="certify")
    bound, z, u, tree = _evidence(problem, chosen, effort, time_limit)
    value = problem.total(chosen)
    made = Certificate(
        indices=chosen,
        value=value / problem.pairs,
        upper_bound=max(value, bound) / problem.pairs,
        random_value=problem.random_total() / problem.pairs,
        n=problem.n,
        distance=distance,
        effort=effort,
        seconds=time.perf_counter() - start,
        with_quality=quality is not None,
        z=z,
        u=u,
        tree=tree,
    )
    from tokenprune.repmax.serialise import content_digest

    return replace(made, digest=content_digest(made))


_Evidence = tuple[float, Array | None, Array | None, tuple[Record, ...]]


def _evidence(problem: Problem, chosen: Indices, effort: Effort, time_limit: float | None) -> _Evidence:
    """Bound on F with z, u and tree."""
    at_set = np.zeros(problem.n)
    at_set[chosen] = 1.0
    if problem.k in (0, problem.n):
        return problem.total(chosen), at_set, None, ()
    if effort == "exact":
        search = Search(problem, time_limit=time_limit, keep_proof=True)
        search.run()
        return search.upper_bound, None, None, tuple(search.records)
    root = Node.root(problem, at_set)
    quadratic, linear = root.shifted(problem)
    u = None if problem.negative_type else root.shift
    best = tangent_at(quadratic, linear, problem.k, at_set)
    if effort == "tangent":
        return best.bound + problem.slack, at_set, u, ()
    warm = np.zeros(problem.n)
    warm[swap_search(problem, chosen)] = 1.0
    best = min(best, relax(quadratic, linear, problem.k, warm, steps=400), key=lambda tangent: tangent.bound)
    if effort == "shifted":
        shift = full_shift(problem, root)
        if shift is not None:
            shifted = Node.root(problem, at_set, shift=shift).shifted(problem)
            tighter = relax(*shifted, problem.k, best.z, steps=400)
            if tighter.bound < best.bound:
                best, u = tighter, shift
    return best.bound + problem.slack, best.z, u, ()


def full_shift(problem: Problem, root: Node) -> Array | None:
    """The residual-variance shift for all points (one per class of clones), or None when nothing is gained."""
    first = representatives(problem.classes)
    block = problem.matrix[np.ix_(first, first)]
    base = root.shift[first]
    block.flat[:: first.size + 1] += base
    gain = residual_shift(block)
    block.flat[:: first.size + 1] += gain
    return spread(gain + base, problem.classes) if gain.any() and is_concave(block) else None
