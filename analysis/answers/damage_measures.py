"""What pruning does to single answers: flips, probabilities, calibration, and which samples suffer."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tokenprune.analysis.answers.calibration import Calibration, measure_calibration
from tokenprune.analysis.intervals import over_images, show
from tokenprune.core.strategy import PruningStrategy
from tokenprune.evaluate.metrics import normalise
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.significance import McNemar, corrected, mcnemar, paired_p_value
from tokenprune.evaluate.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tokenprune.evaluate.answers import Answer, AskedBatch
    from tokenprune.evaluate.loading import LoadedModel

_NAN = math.nan
_SHOWN = {
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
    "changed": "another answer than dense",
    "hard": "wrong of the hard samples",
    "easy": "wrong of the easy samples",
}


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One answer, reduced to what the damage is computed from.

    Attributes:
        unit: what the bootstrap draws: the image.
        text: the answer.
        correct: whether it is right.
        confidence: probability that the model gave this answer, in [0, 1].
        divergence: Kullback-Leibler divergence in nats of the distribution of the first answer token from the dense
            model's, KL(dense || pruned); 0 for the dense model itself.
    """

    unit: str
    text: str
    correct: bool
    confidence: float
    divergence: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class DamageReport:
    """What one strategy does to the answers.

    Attributes:
        label: the strategy.
        means: by name of a measure, its mean over samples with a 95% interval over images: `accuracy`; `difference` to
            dense; `agreement` (same answer as dense); `right_to_wrong` and `wrong_to_right` (shares of all samples);
            `divergence` (see `AnswerRecord`); `confidence`; `brier`; `ece`; and accuracy by difficulty: `hard` (dense
            right, pooled wrong), `easy` (both right), `dense_wrong`.
        calibration: confidence against correctness.
        p_value: of the difference to dense, images exchanged (`paired_p_value`).
        p_corrected: the same after Holm's correction over the strategies of the report.
        mcnemar: dense against the strategy, with independent samples; None for a mean over seeds.
    """

    label: str
    means: Mapping[str, Interval]
    calibration: Calibration
    p_value: float
    p_corrected: float
    mcnemar: McNemar | None

    def plot(self, ax: "Axes", *, colour: str = "#0072B2", offset: float = 0.0) -> "Axes":
        """Shares of damaged answers with their intervals.

        Args:
            ax: where to draw; several reports may share it.
            colour: of the points.
            offset: moves the points down by this part of a line, so that several reports do not hide one another.
        """
        for y, name in enumerate(_SHOWN):
            mean = self.means["agreement" if name == "changed" else name]
            if not mean.units:
                continue
            value, low, high = mean.value, mean.low, mean.high
            if name in ("changed", "hard", "easy"):
                value, low, high = 1 - value, 1 - high, 1 - low
            ends = np.nan_to_num([[max(0.0, value - low)], [max(0.0, high - value)]])
            ax.errorbar(value, y + offset, xerr=ends, fmt="o", markersize=4, color=colour, capsize=2)
        ax.plot([], [], "o", color=colour, label=self.label)
        ax.set_yticks(range(len(_SHOWN)), list(_SHOWN.values()))
        ax.set_ylim(len(_SHOWN) - 0.5, -0.5)
        ax.set_xlabel("share, with 95% interval over images")
        return ax

    @property
    def explanation(self) -> str:
        """What was found, in a sentence with numbers."""
        mean = self.means
        return (
            f"{self.label}: accuracy {show(mean['accuracy'], percent=True)}, against dense "
            f"{show(mean['difference'], percent=True)} (p {self.p_value:.2g}, corrected {self.p_corrected:.2g}); "
            f"{show(mean['right_to_wrong'], percent=True)} of the answers turn from right to wrong, "
            f"{show(mean['wrong_to_right'], percent=True)} back; {show(mean['agreement'], percent=True)} stay. "
            f"ECE {show(mean['ece'])}."
        )


def measure_damage(
    label: str,
    dense: Sequence[AnswerRecord],
    runs: Sequence[Sequence[AnswerRecord]],
    pooled: Sequence[AnswerRecord] | None = None,
) -> DamageReport:
    """Damage from answers that are there already.

    Caveat of the split by difficulty: "hard" samples are those that fail on pooled tokens, so pooling scores 0 on them
    by construction. Compare methods inside the split with each other, never with pooling. On models with a fixed input
    size pooling the raster of tokens to the same budget stands for downsampling the image.

    Args:
        label: what the strategy is called.
        dense: the unpruned model's answers.
        runs: the strategy's answers to the same samples, one entry per seed.
        pooled: answers from pooled tokens at the same budget; None leaves the split out.

    Raises:
        ValueError: when there is no sample, or numbers differ.

    Examples:
        >>> right = AnswerRecord(unit="a", text="red", correct=True, confidence=0.9)
        >>> wrong = AnswerRecord(unit="b", text="two", correct=False, confidence=0.6, divergence=1.5)
        >>> report = measure_damage("x", [right, right], [[right, wrong]])
        >>> report.means["right_to_wrong"].value, report.means["agreement"].value, report.means["divergence"].value
        (0.5, 0.5, 0.75)
    """
    sizes = {len(dense), *(len(run) for run in runs), *(() if pooled is None else (len(pooled),))}
    if not dense or not runs or len(sizes) != 1:
        raise ValueError(
            f"measure_damage: need the same samples for all, at least one, got {sorted(sizes)} and {len(runs)} runs"
        )
    units = [record.unit for record in dense]
    was = np.array([record.correct for record in dense])
    now = np.array([[record.correct for record in run] for run in runs])
    sure = np.array([[record.confidence for record in run] for run in runs])
    same = [[normalise(a.text) == normalise(b.text) for a, b in zip(run, dense, strict=True)] for run in runs]
    divergence = [[record.divergence for record in run] for run in runs]
    found = {
        "accuracy": now,
        "difference": now.astype(np.float64) - was,
        "agreement": np.array(same),
        "right_to_wrong": ~now & was,
        "wrong_to_right": now & ~was,
        "divergence": np.array(divergence),
        "confidence": sure,
    }
    calibration = measure_calibration(sure, now, units)
    means = {name: mean_interval(values, units) for name, values in found.items()}
    means |= {"brier": calibration.brier, "ece": calibration.ece}
    survives = np.zeros_like(was) if pooled is None else np.array([record.correct for record in pooled])
    known = pooled is not None
    groups = {"hard": was & ~survives & known, "easy": was & survives & known, "dense_wrong": ~was}
    mean_correct = now.mean(0)
    for name, members in groups.items():
        means[name] = over_images(np.where(members, mean_correct, _NAN).tolist(), units)
    p_value = paired_p_value(now, was, units)
    return DamageReport(
        label=label,
        means=means,
        calibration=calibration,
        p_value=p_value,
        p_corrected=p_value,
        mcnemar=mcnemar(now[0].tolist(), was.tolist()) if len(runs) == 1 else None,
    )


def analyse_damage(
    loaded: "LoadedModel",
    samples: Sequence[Sample],
    strategies: Mapping[str, Sequence[PruningStrategy]],
    *,
    pooled: PruningStrategy | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    watch: Callable[[Iterable["AskedBatch"]], Iterable["AskedBatch"]] = iter,
) -> tuple[DamageReport, ...]:
    """Answer a data set with and without pruning and measure the damage; the dense model's own report comes first.

    One pass; a batch and its vocabulary distributions are in memory at a time.

    Args:
        loaded: the model and its processor.
        samples: the data set.
        strategies: by label, the strategy once per seed.
        pooled: what splits the samples by difficulty, as a rule `GridPool` at the budget of the strategies.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        watch: wraps the batches, for a progress bar.

    Raises:
        ValueError: when there is no sample or no strategy, or a strategy does not fit the model.
    """
    from tokenprune.evaluate.answers import answer, ask_batches, signals_of
    from tokenprune.models import adapter_for
    from tokenprune.models.prompt.choose import fit_strategy

    if not strategies or not all(strategies.values()):
        raise ValueError("analyse_damage: strategies is empty; give at least one, for example GreedyRepMax(64)")
    adapter = adapter_for(loaded.model)
    given = [one for seeds in strategies.values() for one in seeds] + ([pooled] if pooled is not None else [])
    every = [fit_strategy(one, adapter) for one in given]
    dense: list[AnswerRecord] = []
    runs: list[list[AnswerRecord]] = [[] for _ in every]
    batches = ask_batches(loaded, samples, batch_size=batch_size, want=signals_of(every))
    for batch in watch(batches):
        plain = answer(loaded, batch, max_new_tokens=max_new_tokens)
        dense.extend(_record(unit, one, one) for unit, one in zip(batch.units, plain, strict=True))
        for own, strategy in zip(runs, every, strict=True):
            pruned = answer(loaded, batch, strategy, max_new_tokens=max_new_tokens)
            own.extend(_record(unit, a, b) for unit, a, b in zip(batch.units, pruned, plain, strict=True))
    control = runs.pop() if pooled is not None else None
    rest = iter(runs)
    reports = [measure_damage("dense", dense, [dense], control)]
    for label, seeds in strategies.items():
        reports.append(measure_damage(label, dense, [next(rest) for _ in seeds], control))
    return (reports[0], *_with_correction(reports[1:]))


def _with_correction(reports: Sequence[DamageReport]) -> list[DamageReport]:
    values = corrected([report.p_value for report in reports])
    return [replace(report, p_corrected=value) for report, value in zip(reports, values, strict=True)]


def _record(unit: str, found: "Answer", dense: "Answer") -> AnswerRecord:
    p, q = dense.first.double(), found.first.double()
    divergence = 0.0 if found is dense else max(0.0, float((p.exp() * (p - q)).nansum()))
    return AnswerRecord(
        unit=unit,
        text=found.text,
        correct=found.correct,
        confidence=min(1.0, found.confidence),
        divergence=divergence,
    )
