"""A second question about an image that was pruned for the first one: how much is lost?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokenprune.analysis.intervals import show
from tokenprune.analysis.tokens.diagnostics import jaccard
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.statistics import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenprune.evaluate.answers import AskedBatch
    from tokenprune.evaluate.loading import LoadedModel


@dataclass(frozen=True, eq=False, kw_only=True)
class TurnsReport:
    """The second question, on tokens kept for the first one and on tokens kept for itself.

    Attributes:
        strategy: the strategy.
        means: with 95% intervals over images: `kept_for_first` and `kept_for_second`, accuracy on the second question;
            `difference`, first minus second, paired; `overlap`, Jaccard overlap of the two kept sets. A strategy that
            does not look at the question has a difference of 0 and an overlap of 1 by construction.
        dense: accuracy of the unpruned model on the second question.
    """

    strategy: PruningStrategy
    means: Mapping[str, Interval]
    dense: Interval

    def plot(self, ax: "Axes", *, place: int = 0) -> "Axes":
        """Both accuracies, one above the other.

        Args:
            ax: where to draw; several reports may share it.
            place: line of this report.
        """
        looks = (("kept_for_second", "#0072B2", "o", -0.12), ("kept_for_first", "#D55E00", "D", 0.12))
        for name, colour, marker, offset in looks:
            mean = self.means[name]
            ends = np.nan_to_num([[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]])
            label = name.replace("_", " ") + " question" if place == 0 else None
            ax.errorbar(
                mean.value, place + offset, xerr=ends, fmt=marker, color=colour, markersize=4, capsize=2, label=label
            )
        ax.set_xlabel("accuracy on the second question, with 95% interval over images")
        return ax

    @property
    def explanation(self) -> str:
        """What was found, in a sentence with numbers."""
        mean = self.means
        first, own = (show(mean[f"kept_for_{which}"], percent=True) for which in ("first", "second"))
        return (
            f"{self.strategy!r}: the second question on tokens of the first {first}, on tokens of its own {own}, "
            f"difference {show(mean['difference'], percent=True)}; the two sets share "
            f"{show(mean['overlap'], percent=True)}."
        )


def analyse_turns(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    second: Mapping[str, tuple[str, Sequence[str]]],
    strategies: Sequence[PruningStrategy],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    watch: Callable[[Iterable["AskedBatch"]], Iterable["AskedBatch"]] = iter,
) -> tuple[TurnsReport, ...]:
    """Prune for a first question, then ask a second one on the same tokens and on tokens chosen for itself.

    The second question stands in a prompt of its own, so the only thing that the first one leaves behind is which
    tokens are there: what a service meets that prunes an image once and answers several questions about it.

    Args:
        loaded: the model and its processor.
        samples: the first questions.
        second: by sample id, the second question and its right answers.
        strategies: at least one; they must act before the language model.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        watch: wraps the batches, for a progress bar.

    Raises:
        ValueError: when a sample has no second question, there is no strategy, or one acts inside the language model.
    """
    from tokenprune.analysis.tokens.cross_scoring import check_strategies
    from tokenprune.evaluate.answers import answer, ask_again, ask_batches, signals_of
    from tokenprune.models import select_tokens

    check_strategies(strategies, owner="analyse_turns")
    lacking = [sample.id for sample in samples if sample.id not in second]
    if lacking:
        raise ValueError(f"analyse_turns: sample {lacking[0]!r} has no second question; give one for every sample")
    units: list[str] = []
    dense: list[bool] = []
    own: list[list[bool]] = [[] for _ in strategies]
    stale: list[list[bool]] = [[] for _ in strategies]
    shared: list[list[float]] = [[] for _ in strategies]
    for batch in watch(ask_batches(loaded, samples, batch_size=batch_size, want=signals_of(strategies))):
        later = ask_again(loaded, batch, [second[sample.id] for sample in batch.samples])
        units.extend(batch.units)
        dense.extend(found.correct for found in answer(loaded, later, max_new_tokens=max_new_tokens))
        for number, strategy in enumerate(strategies):
            first, fresh = (select_tokens(strategy, one.prompt)[0] for one in (batch, later))
            for record, chosen in ((stale, first), (own, fresh)):
                found = answer(
                    loaded, later, selections=chosen, positions=strategy.place.positions, max_new_tokens=max_new_tokens
                )
                record[number].extend(one.correct for one in found)
            rows = [segment.row for segment in later.prompt.segments]
            values = [jaccard(a.indices, b.indices) for a, b in zip(first, fresh, strict=True)]
            per_row = [[v for v, row in zip(values, rows, strict=True) if row == i] for i in range(len(batch.samples))]
            shared[number].extend(float(np.mean(entries)) for entries in per_row)
    whole = mean_interval(dense, units)
    return tuple(
        TurnsReport(
            strategy=strategy,
            means={
                "kept_for_first": mean_interval(stale[number], units),
                "kept_for_second": mean_interval(own[number], units),
                "difference": paired_difference(stale[number], own[number], units),
                "overlap": mean_interval(shared[number], units),
            },
            dense=whole,
        )
        for number, strategy in enumerate(strategies)
    )
