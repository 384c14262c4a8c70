"""Does a better value of the RepMax objective buy accuracy? Sets of equal size, from random to proved optimum."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int

from tokenprune.analysis.answers.within import within_correlation
from tokenprune.analysis.intervals import show
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.selection import Selection
from tokenprune.core.signals import IMAGE_KEY
from tokenprune.evaluate.methods import show_budget
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.significance import corrected, paired_p_value
from tokenprune.evaluate.statistics import Interval, mean_interval, paired_difference
from tokenprune.repmax import (
    exact_repmax,
    greedy_repmax,
    local_search_repmax,
    mean_pairwise_distance,
    random_expectation,
    relax_round_repmax,
    reverse_greedy_repmax,
)
from tokenprune.repmax.problem.distances import Distance
from tokenprune.repmax.problem.objective import normalised_gap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenprune.evaluate.answers import AskedBatch
    from tokenprune.evaluate.loading import LoadedModel

Array = npt.NDArray[np.float64]

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Parts of greedy's picks that are replaced by random tokens, on the way from random to greedy."""
NEAR = ("greedy from token 0", "greedy", "reverse greedy", "greedy and swaps", "rounded relaxation", "exact")
"""Optimisers; their sets differ in the last per mille of the objective."""


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptSets:
    """Sets of k tokens of one image under the RepMax objective.

    Attributes:
        sets: by name, ascending indices. "random 50% #1" is greedy with half of its picks replaced, second draw.
        values: by name, mean pairwise distance.
        upper_bound: proved bound on the value of any set of k tokens.
        random_value: expected value of a uniformly random set.
        proved: whether the bound is the optimum.
    """

    sets: Mapping[str, Int[torch.Tensor, " k"]]
    values: Mapping[str, float]
    upper_bound: float
    random_value: float
    proved: bool

    def gap(self, name: str) -> float:
        """Normalised: 0 at the bound, 1 at the expectation of a random set."""
        return normalised_gap(self.values[name], self.upper_bound, self.random_value)


@dataclass(frozen=True, eq=False, kw_only=True)
class GapAccuracyReport:
    """Objective against answers at one budget.

    Attributes:
        keep: the budget.
        distance: of the objective.
        names: the kinds of sets, from random to exact; draws of one kind are pooled.
        gap: by name, the mean normalised gap to the proved bound (0 at the bound, 1 at random's expectation).
        accuracy: by name.
        divergence: by name, KL divergence in nats of the first answer token from the dense model.
        against_greedy: by name, accuracy minus greedy's, paired.
        nearer_than_greedy: by name, divergence minus greedy's, paired; below 0 the answers are nearer to dense.
        p_corrected: by name, of the difference in accuracy, images exchanged, Holm over the names.
        path: correlation within images of value and correctness over all sets, from random to exact.
        path_divergence: the same of value and divergence.
        near: correlation within images of value and correctness over the optimisers alone.
        near_divergence: the same of value and divergence.
        proved: share of the images whose bound is the optimum.
        rows: per sample and set: sample, set, value, bound, normalised gap, correct, divergence.
    """

    keep: Keep
    distance: str
    names: tuple[str, ...]
    gap: Mapping[str, Interval]
    accuracy: Mapping[str, Interval]
    divergence: Mapping[str, Interval]
    against_greedy: Mapping[str, Interval]
    nearer_than_greedy: Mapping[str, Interval]
    p_corrected: Mapping[str, float]
    path: Interval
    path_divergence: Interval
    near: Interval
    near_divergence: Interval
    proved: float
    rows: tuple[tuple[str, str, float, float, float, bool, float], ...]

    def plot(self, ax: "Axes", *, measure: str = "accuracy") -> "Axes":
        """One line per kind of set with its gap, from random to exact.

        Args:
            ax: where to draw.
            measure: "accuracy" or "divergence".
        """
        means: Mapping[str, Interval] = getattr(self, measure)
        for place, name in enumerate(self.names):
            mean = means[name]
            ends = np.nan_to_num([[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]])
            colour = "#0072B2" if name in NEAR else "#777777"
            ax.errorbar(mean.value, place, xerr=ends, fmt="o", color=colour, markersize=4, capsize=2)
        ax.set_yticks(
            range(len(self.names)), [f"{name} (gap {100 * self.gap[name].value:.3g}%)" for name in self.names]
        )
        ax.set_ylim(len(self.names) - 0.5, -0.5)
        texts = {"accuracy": "accuracy, 95% interval over images", "divergence": "KL from dense, nats, 95% interval"}
        ax.set_xlabel(texts[measure])
        ax.set_title(f"{show_budget(self.keep)} kept, {self.distance}", loc="left")
        return ax

    @property
    def explanation(self) -> tuple[str, ...]:
        """What was found, in sentences with numbers."""
        exact, greedy = self.against_greedy["exact"], self.gap["greedy"]
        best = min(self.names, key=lambda name: self.divergence[name].value)
        near = show(self.near) if self.near.units else "nothing, since their answers never differ in correctness,"
        return (
            f"At {show_budget(self.keep)} ({self.distance}): greedy is {100 * greedy.value:.3g}% of the way from the "
            f"proved bound to a random set, and closing that gap changes accuracy by "
            f"{100 * exact.value:+.1f} [{100 * exact.low:+.1f}, {100 * exact.high:+.1f}] points (corrected p "
            f"{self.p_corrected['exact']:.2g}). The answers stay nearest to dense for {best!r}, KL "
            f"{show(self.divergence[best])}; exact {show(self.divergence['exact'])}"
            + (f"; against greedy, paired, {show(self.nearer_than_greedy[best])}." if best != "greedy" else "."),
            f"Within images, value and correctness correlate by {show(self.path)} over all sets from random to exact, "
            f"and by {near} over the optimisers' sets alone; value and divergence by {show(self.path_divergence)} and "
            f"{show(self.near_divergence)}.",
        )


def kept_sets(
    visual: torch.Tensor,
    k: int,
    *,
    distance: Distance = "cosine",
    draws: int = 2,
    time_limit: float | None = 0.5,
    seed: int = 0,
) -> KeptSets:
    """Sets of k tokens of one image, from random over partly random to the best that can be found.

    Args:
        visual: (n, d) tokens.
        k: how many, 2..n-1.
        distance: of the objective.
        draws: random draws per share of replaced picks.
        time_limit: seconds for the exact solver; the bound is proved in any case.
        seed: of the draws.

    Raises:
        ValueError: when k is not in 2..n-1, or draws is not positive.
    """
    x = visual.detach().double().cpu().numpy()
    n = len(x)
    if not 2 <= k < n:
        raise ValueError(f"kept_sets: k must be in 2..{n - 1} for {n} tokens, got {k}; choose another budget")
    if draws < 1:
        raise ValueError(f"kept_sets: draws must be 1 or more, got {draws}")
    rng = np.random.default_rng(seed)
    picked = greedy_repmax(x, k, distance=distance)
    found: dict[str, npt.NDArray[np.int64]] = {}
    for share in SHARES:
        for draw in range(draws):
            stay = rng.choice(picked, k - round(share * k), replace=False)
            others = np.setdiff1d(np.arange(n), stay)
            found[f"random {100 * share:g}% #{draw}"] = np.concatenate([stay, rng.choice(others, k - len(stay), False)])
    exact = exact_repmax(x, k, distance=distance, solver="bnb", time_limit=time_limit)
    tensor = torch.from_numpy(x)
    found |= {
        "greedy from token 0": greedy_repmax(x, k, distance=distance, start="first"),
        "greedy": picked,
        "reverse greedy": reverse_greedy_repmax(tensor, k, distance=distance).numpy(),
        "greedy and swaps": local_search_repmax(tensor, k, distance=distance).numpy(),
        "rounded relaxation": relax_round_repmax(tensor, k, distance=distance).numpy(),
        "exact": exact.indices,
    }
    sets = {name: torch.from_numpy(np.sort(np.asarray(rows, dtype=np.int64))) for name, rows in found.items()}
    return KeptSets(
        sets=sets,
        values={name: mean_pairwise_distance(x, rows.numpy(), distance=distance) for name, rows in sets.items()},
        upper_bound=exact.upper_bound,
        random_value=random_expectation(x, distance=distance),
        proved=exact.optimal,
    )


def analyse_gap(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    keep: Keep,
    *,
    distance: Distance = "cosine",
    draws: int = 2,
    time_limit: float | None = 0.5,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    watch: Callable[[Iterable["AskedBatch"]], Iterable["AskedBatch"]] = iter,
) -> GapAccuracyReport:
    """Answer a data set on sets of equal size that differ in the RepMax objective, and compare.

    Args:
        loaded: the model and its processor.
        samples: the data set; one image each.
        keep: the budget.
        distance: of the objective.
        draws: random draws per share of replaced picks.
        time_limit: seconds per image for the exact solver.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        watch: wraps the batches, for a progress bar.

    Raises:
        ValueError: when a sample has several images, or the budget leaves fewer than two tokens or all.
    """
    from tokenprune.evaluate.answers import answer, ask_batches

    several = [sample.id for sample in samples if len(sample.images) != 1]
    if several:
        raise ValueError(f"analyse_gap: sample {several[0]!r} has several images; give samples with one image each")
    units: list[str] = []
    found: list[KeptSets] = []
    right: dict[str, list[bool]] = {}
    apart: dict[str, list[float]] = {}
    for batch in watch(ask_batches(loaded, samples, batch_size=batch_size, want=(IMAGE_KEY,))):
        tokens = batch.prompt.tokens()
        own = [
            kept_sets(
                image.visual,
                keep_count(keep, image.n),
                distance=distance,
                draws=draws,
                time_limit=time_limit,
                seed=len(found) + place,
            )
            for place, image in enumerate(tokens)
        ]
        units.extend(batch.units)
        found.extend(own)
        dense = answer(loaded, batch, max_new_tokens=max_new_tokens)
        for name in own[0].sets:
            chosen = [
                Selection(indices=sets.sets[name].to(image.visual.device), total=image.n)
                for sets, image in zip(own, tokens, strict=True)
            ]
            answers = answer(loaded, batch, selections=chosen, max_new_tokens=max_new_tokens)
            right.setdefault(name, []).extend(one.correct for one in answers)
            apart.setdefault(name, []).extend(
                max(0.0, float((b.first.double().exp() * (b.first.double() - a.first.double())).nansum()))
                for a, b in zip(answers, dense, strict=True)
            )
    return _report(keep, distance, [sample.id for sample in samples], units, found, right, apart)


def _report(
    keep: Keep,
    distance: str,
    ids: Sequence[str],
    units: Sequence[str],
    found: Sequence[KeptSets],
    right: Mapping[str, Sequence[bool]],
    apart: Mapping[str, Sequence[float]],
) -> GapAccuracyReport:
    kinds: dict[str, list[str]] = {}
    for name in right:
        kinds.setdefault(name.split(" #")[0], []).append(name)
    correct = {kind: np.array([right[name] for name in names], dtype=np.float64) for kind, names in kinds.items()}
    others = [kind for kind in kinds if kind != "greedy"]
    p_values = corrected([paired_p_value(correct[kind], correct["greedy"], units) for kind in others])
    everything, near = list(right), [name for name in right if name in NEAR]
    values = {name: [sets.values[name] for sets in found] for name in right}

    def together(names: Sequence[str], outcome: Mapping[str, Sequence[float]]) -> Interval:
        return within_correlation([values[name] for name in names], [outcome[name] for name in names], units)

    return GapAccuracyReport(
        keep=keep,
        distance=distance,
        names=tuple(kinds),
        gap={
            kind: mean_interval([[sets.gap(name) for sets in found] for name in names], units)
            for kind, names in kinds.items()
        },
        accuracy={kind: mean_interval(values, units) for kind, values in correct.items()},
        divergence={kind: mean_interval([apart[name] for name in names], units) for kind, names in kinds.items()},
        against_greedy={kind: paired_difference(correct[kind], correct["greedy"], units) for kind in others},
        nearer_than_greedy={
            kind: paired_difference([apart[name] for name in kinds[kind]], apart["greedy"], units) for kind in others
        },
        p_corrected=dict(zip(others, p_values, strict=True)),
        path=together(everything, right),
        path_divergence=together(everything, apart),
        near=together(near, right),
        near_divergence=together(near, apart),
        proved=float(np.mean([sets.proved for sets in found])),
        rows=tuple(
            (ids[i], name, sets.values[name], sets.upper_bound, sets.gap(name), right[name][i], apart[name][i])
            for i, sets in enumerate(found)
            for name in sets.sets
        ),
    )
