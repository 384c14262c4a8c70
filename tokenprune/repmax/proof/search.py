"""Branch and bound on the concave relaxation: RepMax to proven optimality at the size of an image."""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from tokenprune.repmax.greedy import greedy_for
from tokenprune.repmax.local_search import swap_search
from tokenprune.repmax.problem.clones import close_under_order, fractionality, representatives, spread
from tokenprune.repmax.problem.distances import Array
from tokenprune.repmax.problem.objective import Indices, Problem
from tokenprune.repmax.problem.relaxation import Tangent, relax, tangent_at
from tokenprune.repmax.problem.shift import base_shift, centring_steps, is_concave, residual_shift
from tokenprune.repmax.proof.node import Node, branching_point, completion, exclusion_bounds
from tokenprune.repmax.proof.tree import Record, Step
from tokenprune.repmax.reverse import backward

_RESHIFT = 0.75  # a block that shrank to this share of the one its shift was made for gets a new shift
_STAGES_AT_ROOT, _STAGES = 14, 3  # rounds in which a shift is refined
_STALL = 0.02  # a round must close this share of the gap to be followed by another
_WALK = 200  # Frank-Wolfe steps at the root, where nothing is known yet
_PERTURBATIONS = 12
_ROUNDS = 4  # tangents per node at most
_ROUND_ALWAYS, _ROUND_EVERY = 30, 16  # nodes whose relaxation is rounded to a set
_NOBODY = np.empty(0, dtype=np.int64)
_MANY = 20000  # open nodes from which on the search goes deep instead of wide, to bound the memory


@dataclass(frozen=True)
class Progress:
    """What the progress callback gets: nodes done, nodes open, best F so far, bound on F, seconds since the start."""

    nodes: int
    open: int
    value: float
    upper_bound: float
    seconds: float


@dataclass(eq=False)
class Search:
    """State of one run; `run` does the work and may be interrupted at any point without losing the answer.

    Attributes:
        problem: what to solve; 0 < k < n.
        rel_tol: a node is closed when no set in it exceeds the best one by more than this share.
        time_limit: seconds, None for none.
        callback: called after each node with a `Progress`, whose values are means over pairs.
        keep_proof: whether to record the tree.
    """

    problem: Problem
    rel_tol: float = 1e-9
    time_limit: float | None = None
    callback: Callable[[Progress], None] | None = None
    keep_proof: bool = False
    best: Indices = field(init=False)
    value: float = field(init=False)
    proved: float = field(init=False, default=-np.inf)
    nodes: int = field(init=False, default=0)
    interrupted: bool = field(init=False, default=False)
    records: list[Record] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._start = time.perf_counter()
        self._slack = self.problem.slack
        self._heap: list[tuple[float, int, Node]] = []
        self._ticket = count()
        self.best = np.sort(greedy_for(self.problem))
        self.value = self.problem.total(self.best)
        warm = np.zeros(self.problem.n)
        warm[self.best] = 1.0
        self.records.append(Record(parent=-1, point=-1, taken=False))
        root = Node.root(self.problem, warm)
        # One matrix-vector product: whatever happens next, the answer has a bound.
        at_set = tangent_at(*root.shifted(self.problem), self.problem.k, warm)
        shift = None if self.problem.negative_type else root.shift
        self._note(0, Step(z=warm, shift=shift, ones=_NOBODY, zeros=_NOBODY))
        self._push(replace(root, bound=at_set.bound + self._slack))

    @property
    def threshold(self) -> float:
        """Sets with F above this are still looked for."""
        return self.value + max(self.rel_tol * abs(self.value), 4.0 * self._slack)

    @property
    def upper_bound(self) -> float:
        """Largest F that any set may still have."""
        waiting = self._heap[0][2].bound if self._heap else -np.inf
        return max(self.value, self.proved, waiting)

    @property
    def closed(self) -> bool:
        """Whether the best set is proved best, to the tolerance."""
        return not self._heap

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def run(self) -> None:
        """Search until everything is closed, the time is up, or KeyboardInterrupt."""
        current: Node | None = None
        try:
            self._improve_start()
            while self._heap and not self._out_of_time():
                current = self._pop()
                if current.bound > self.threshold:
                    self._expand(current)
                else:
                    self._close(current.bound)
                current = None
                if self.callback is not None:
                    self.callback(self._progress())
        except KeyboardInterrupt:
            self.interrupted = True
            if current is not None:  # its children may wait already; counting it again only weakens the bound
                self._push(current)

    def _improve_start(self) -> None:
        problem = self.problem
        self._offer(swap_search(problem, self.best))
        self._offer(swap_search(problem, backward(problem.matrix, problem.linear, problem.k)))

    def _perturb(self) -> None:
        """Restart the local search from the best set with a third of it exchanged at random (fixed seed)."""
        generator = np.random.default_rng(0)
        for _ in range(_PERTURBATIONS):
            keep = generator.permutation(self.best)[: self.problem.k - max(1, self.problem.k // 3)]
            others = np.setdiff1d(np.arange(self.problem.n), keep)
            fill = generator.permutation(others)[: self.problem.k - keep.size]
            self._offer(swap_search(self.problem, np.concatenate([keep, fill])))

    def _round(self, node: Node, z: Array) -> None:
        """The relaxation's largest coordinates as a set, improved by swaps."""
        places = node.open_places(self.problem)
        likely = node.free[np.argsort(-z, kind="stable")[:places]]
        self._offer(swap_search(self.problem, np.concatenate([node.chosen, likely])))

    def _expand(self, node: Node) -> None:
        """Bound the node, fix what can be fixed, tighten the shift, and close it or branch."""
        problem, number = self.problem, self.nodes
        self.nodes += 1
        shift: Array | None = None
        for _ in range(_ROUNDS):
            if self._complete(node):
                return
            places, extra = node.open_places(problem), node.constant + self._slack
            tangent = relax(
                *node.shifted(problem),
                places,
                node.warm,
                stop=self.threshold - extra,
                steps=_WALK if number == 0 and shift is None else 0,
            )
            if number == 0 and shift is None:
                self._perturb()
            if number < _ROUND_ALWAYS or number % _ROUND_EVERY == 0:
                self._round(node, tangent.z)
            node = replace(node, warm=tangent.z, bound=min(node.bound, tangent.bound + extra))
            inside, outside = (bound + extra for bound in exclusion_bounds(tangent, places))
            zeros, ones = inside <= self.threshold, outside <= self.threshold
            fixed = zeros | ones
            self._note(node.record, Step(tangent.z, shift, node.free[ones], node.free[zeros]))
            if tangent.bound + extra <= self.threshold:
                self._close(tangent.bound + extra)
                return
            self._close(max(inside[zeros].max(initial=-np.inf), outside[ones].max(initial=-np.inf)))
            if problem.has_clones:
                ones, zeros = close_under_order(problem.classes[node.free], ones, zeros)
            if bool((zeros & ones).any()):  # such a point can be neither in nor out: nothing better is left here
                return
            before = node.free.size
            node = node.decide(problem, ones, zeros)
            shift = None
            if 1 < node.free.size <= _RESHIFT * node.shift_size:
                node, shift = self._reshift(node, _STAGES_AT_ROOT if number == 0 else _STAGES)
            if shift is None and fixed.sum() < 0.1 * before:
                break
        if not self._complete(node):
            self._branch(node, shift)

    def _complete(self, node: Node) -> bool:
        last = completion(node, self.problem)
        if last is None:
            return False
        value, members = last
        if value > -np.inf:
            self._offer(members)
        self._close(value)
        return True

    def _reshift(self, node: Node, stages: int) -> tuple[Node, Array | None]:
        """A shift made for the free block alone; None in its place when the inherited one stays."""
        problem, classes = self.problem, self.problem.classes[node.free]
        first = representatives(classes) if problem.has_clones else np.arange(node.free.size)
        block = problem.matrix[np.ix_(node.free[first], node.free[first])]
        inherited = node.shift[first]
        base = 0.0 if problem.negative_type else base_shift(block)
        simple = residual_shift(block + np.diag(np.full(first.size, base))) + base
        weights = fractionality(np.clip(node.warm, 0.0, 1.0), classes)
        best = self._refine(node, block, [inherited, simple], weights, stages)
        node = replace(node, shift_size=node.free.size)
        if best is inherited or not is_concave(block + np.diag(best)):
            return node, None
        node = replace(node, shift=spread(best, classes))
        return node, node.shift

    def _refine(self, node: Node, block: Array, starts: list[Array], weights: Array, stages: int) -> Array:
        """Alternate between the relaxation and the best shift for its solution; the shift of the lowest bound."""
        problem, classes = self.problem, self.problem.classes[node.free]
        places, extra = node.open_places(problem), node.constant + self._slack
        scale = float(np.abs(block).max(initial=0.0))
        best = starts[0]
        if not 0 < places < node.free.size or scale == 0.0 or best.size < 3:
            return best

        def bound_with(shift: Array, warm: Array) -> Tangent:
            trial = replace(node, shift=spread(shift, classes))
            return relax(*trial.shifted(problem), places, warm, stop=self.threshold - extra)

        tangent = bound_with(best, node.warm)
        for other in starts[1:]:
            if float(weights @ other) > float(weights @ best):  # else it cannot be better
                challenger = bound_with(other, tangent.z)
                if challenger.bound < tangent.bound:
                    best, tangent = other, challenger
        lowest, mean = tangent.bound, fractionality(np.clip(tangent.z, 0.0, 1.0), classes)
        shift = best - 0.3 * np.abs(best) - 1e-6 * scale  # strictly inside
        barrier = max(float(mean @ np.abs(best)), 1e-4 * scale * float(mean.sum())) / best.size
        barrier *= 1.0 if stages == _STAGES_AT_ROOT else 0.1
        for stage in range(stages):
            if lowest + extra <= self.threshold:
                break
            floor = 0.02 * float(mean.mean()) + 1e-12
            shift = centring_steps(block, shift, np.maximum(mean, 0.0) + floor, barrier, 4)
            tangent = bound_with(shift, tangent.z)
            gained = lowest - tangent.bound
            if gained > 0.0:
                lowest, best = tangent.bound, shift
            if stage > 1 and gained < _STALL * (lowest + extra - self.threshold):
                break
            mean = 0.6 * mean + 0.4 * fractionality(np.clip(tangent.z, 0.0, 1.0), classes)
            barrier *= 0.5
        return best

    def _branch(self, node: Node, shift: Array | None) -> None:
        if shift is not None:  # made after the last tangent: the children use it, so the proof must know it
            self._note(node.record, Step(np.empty(0), shift, _NOBODY, _NOBODY))
        place = branching_point(node.shifted(self.problem)[0], node.warm)
        point = np.zeros(node.free.size, dtype=np.bool_)
        point[place] = True
        for taken in (False, True):
            child = node.decide(self.problem, point & taken, point & (not taken))
            if self.keep_proof:
                self.records.append(Record(parent=node.record, point=int(node.free[place]), taken=taken))
                child = replace(child, record=len(self.records) - 1)
            self._push(child)

    def _offer(self, members: Indices) -> None:
        value = self.problem.total(members)
        if value > self.value:
            self.best, self.value = np.sort(members), value

    def _close(self, bound: float) -> None:
        """Remember that sets with F up to `bound` were given up."""
        self.proved = max(self.proved, bound)

    def _note(self, record: int, step: Step) -> None:
        if self.keep_proof:
            self.records[record].steps.append(step)

    def _push(self, node: Node) -> None:
        heapq.heappush(self._heap, (-node.bound, next(self._ticket), node))

    def _pop(self) -> Node:
        return self._heap.pop()[2] if len(self._heap) > _MANY else heapq.heappop(self._heap)[2]

    def _out_of_time(self) -> bool:
        return self.time_limit is not None and self.seconds >= self.time_limit

    def _progress(self) -> Progress:
        pairs = self.problem.pairs
        return Progress(self.nodes, len(self._heap), self.value / pairs, self.upper_bound / pairs, self.seconds)
