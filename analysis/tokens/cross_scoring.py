"""Every method's kept set under every objective, over a data set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokenprune.analysis.images import AnalysedImage
from tokenprune.analysis.intervals import summarise
from tokenprune.analysis.measures import Watch, long_table, means_table, new_figure, styled
from tokenprune.analysis.tokens.diagnostics import Overlap, SelectionDiagnostics, diagnose, overlap
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Selection
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OBJECTIVES = {
    "mean_distance": ("mean distance", True),
    "min_distance": ("min distance", True),
    "log_det": ("log det", True),
    "effective_rank": ("effective rank", True),
    "coverage_error": ("coverage error", False),
    "coverage_worst": ("worst coverage", False),
    "duplicates": ("duplicates", False),
    "alignment": ("alignment", True),
}
"""Measures of the table: what they are called, and whether large is good."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossScores:
    """Every strategy under every objective.

    Attributes:
        strategies: the rows.
        images: number of images.
        means: per strategy and name of a measure, the mean over images with its 95% interval.
        overlap: how much of their kept sets the strategies share.
    """

    strategies: tuple[PruningStrategy, ...]
    images: int
    means: tuple[Mapping[str, Interval], ...]
    overlap: Overlap

    def plot(self, ax: "Axes") -> "Axes":
        """A table coloured by column, from the worst strategy (pale) to the best."""
        values = np.array([[row[name].value for name in OBJECTIVES] for row in self.means])
        signs = np.array([1.0 if good else -1.0 for _, good in OBJECTIVES.values()])
        signed = values * signs
        low, span = signed.min(0), np.ptp(signed, axis=0)
        shades = np.divide(signed - low, span, out=np.zeros_like(signed), where=span > 0)
        ax.imshow(np.ma.masked_invalid(shades), vmin=0.0, vmax=1.4, cmap="Greens", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            ax.text(column, row, "-" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", fontsize=7.5)
        heads = [f"{name}\n({'large' if good else 'small'} is good)" for name, good in OBJECTIVES.values()]
        ax.set_xticks(range(len(heads)), heads, fontsize=7)
        ax.set_yticks(range(len(self.strategies)), [repr(strategy) for strategy in self.strategies])
        ax.grid(visible=False)
        return ax


def cross_score(images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy]) -> CrossScores:
    """Run several strategies on a data set and score what each keeps under every objective.

    Args:
        images: from `bundled_images` or `stream_images`, with the signals that the strategies need; used once.
        strategies: at least one; they must act before the language model.

    Raises:
        ValueError: when there is no image or no strategy, or a strategy acts inside the language model.

    Examples:
        >>> import torch
        >>> from tokenprune import GreedyRepMax, Tokens
        >>> image = AnalysedImage(id="a", tokens=Tokens(torch.eye(4)))
        >>> cross_score([image], [GreedyRepMax(2)]).means[0]["mean_distance"].value
        1.0
    """
    check_strategies(strategies, owner="cross_score")
    ids: list[str] = []
    selections: list[list[Selection]] = [[] for _ in strategies]
    measures: list[list[SelectionDiagnostics]] = [[] for _ in strategies]
    for image in images:
        ids.append(image.id)
        for place, strategy in enumerate(strategies):
            selection = strategy.select(image.tokens)
            selections[place].append(selection)
            measures[place].append(diagnose(image.tokens, selection))
    return CrossScores(
        strategies=tuple(strategies),
        images=len(ids),
        means=tuple(summarise(own, ids) for own in measures),
        overlap=overlap([repr(strategy) for strategy in strategies], selections),
    )


def check_strategies(strategies: Sequence[PruningStrategy], *, owner: str) -> None:
    """Raise unless there are strategies and all act before the language model."""
    if not strategies:
        raise ValueError(f"{owner}: strategies is empty; give at least one, for example GreedyRepMax(64)")
    for strategy in strategies:
        if isinstance(strategy.place, InDecoder):
            raise ValueError(
                f"{owner}: {strategy!r} acts inside the language model, whose attention is not computed here; choose "
                "strategies that act at the projector"
            )


SELECTIONS = ("random", "uniform_grid", "mi_alignment", "greedy_repmax", "trim_tokenator", "divprune")


def default_selections() -> tuple[PruningStrategy, ...]:
    """Give a few strategies of each kind, for analyses that are not given any."""
    return tuple(parse(name, keep=0.111) for name in SELECTIONS)


@styled
def diagnostics(
    images: Iterable[AnalysedImage], strategies: Sequence[PruningStrategy] = (), *, watch: Watch = iter
) -> Report:
    """Score every method's kept set under every objective, and say how much the sets share.

    Args:
        images: what is looked at.
        strategies: with their budgets; a few of each kind when there are none.
        watch: wraps the images, for a progress bar.
    """
    used = tuple(strategies) or default_selections()
    scores = cross_score(watch(images), used)
    columns = {"kept": ("kept", False)}
    columns |= {name: (head.replace(" ", "\n"), False) for name, (head, _) in OBJECTIVES.items()}
    columns["distance_ratio"] = ("distance /\nrandom", False)
    figure = new_figure(16, 1.8 + 0.5 * len(used))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    scores.plot(left)
    left.set_title("Every kept set under every objective", loc="left")
    scores.overlap.plot(right)
    right.set_title("Jaccard overlap of kept sets", loc="left")
    right.set_yticks([])
    names = list(scores.overlap.names)
    matrix = [[name, *map(float, row)] for name, row in zip(names, scores.overlap.jaccard, strict=True)]
    return Report(
        title="Every kept set under every objective",
        kind="analyze diagnostics",
        shown=[means_table("Kept sets under every objective", names, scores.means, columns)],
        tables={
            "diagnostics": long_table(names, scores.means),
            "overlap": frame(["strategy", *names], matrix),
        },
        figures={"diagnostics": figure},
        notes={
            "diagnostics.png": "Left: each column coloured from its worst (pale) to its best strategy. Right: share of "
            "kept tokens that two strategies have in common."
        },
        configuration={"images": scores.images, "strategies": names},
    )
