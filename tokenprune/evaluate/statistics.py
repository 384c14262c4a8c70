"""Paired comparison of answers: bootstrap intervals, agreement, flips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from tokenprune.evaluate.metrics import normalise

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95% bootstrap interval.

    Attributes:
        value: the estimate itself.
        low: lower end.
        high: upper end.
        units: how many units were resampled.
    """

    value: float
    low: float
    high: float
    units: int


def mean_interval(values: npt.ArrayLike, units: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean over samples with a percentile bootstrap interval that resamples whole units (`scipy.stats.bootstrap`).

    Samples that share a unit (questions about one image) are not independent, so units are drawn, not samples. The
    estimate stays the mean over samples, sum(values) / sum(samples), whatever the units' sizes.

    Args:
        values: (n,) one number per sample, or (runs, n), averaged over runs (seeds) first. The interval speaks of
            new images, not of new seeds.
        units: the unit of each sample.
        seed: of the resampling.

    Raises:
        ValueError: when there is no sample, or `values` and `units` differ in length.

    Examples:
        >>> mean_interval([1, 1, 1], ["a", "b", "b"])
        Interval(value=1.0, low=1.0, high=1.0, units=2)
    """
    per_sample = np.asarray(values, dtype=np.float64)
    per_sample = per_sample.mean(axis=0) if per_sample.ndim == 2 else per_sample
    if per_sample.ndim != 1 or per_sample.size == 0 or per_sample.shape[0] != len(units):
        raise ValueError(
            f"mean_interval: need one value per unit entry, got {per_sample.shape} values, {len(units)} units"
        )
    names, member = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    totals = np.bincount(member, weights=per_sample)
    sizes = np.bincount(member).astype(np.float64)
    value = float(totals.sum() / sizes.sum())
    if len(names) == 1:  # nothing to resample, and scipy refuses a single observation
        return Interval(value=value, low=float("nan"), high=float("nan"), units=1)
    result = bootstrap(
        (totals, sizes),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, 10**5 // len(names)),  # a resample batch that stays in the processor's cache
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(value=value, low=float(low), high=float(high), units=len(names))


def paired_difference(
    method: npt.ArrayLike, reference: npt.ArrayLike, units: Sequence[str], *, seed: int = 0
) -> Interval:
    """Mean difference in correctness, method minus reference, on the same samples, with a 95% interval.

    Args:
        method: (n,) correctness per sample, or (runs, n).
        reference: the same for what is compared against, for example Random over its seeds.
        units: what is resampled, per sample: the image, where several questions share one.
        seed: of the resampling.

    Raises:
        ValueError: when the numbers of samples differ.

    Examples:
        >>> paired_difference([1, 1, 0], [[1, 0, 0], [0, 0, 0]], ["a", "b", "c"]).value
        0.5
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)).mean(axis=0) for values in (method, reference))
    if first.shape != second.shape:
        raise ValueError(
            f"paired_difference: method has {first.size} samples but reference {second.size}; pair them up"
        )
    return mean_interval(first - second, units, seed=seed)


def agreement(answers: Sequence[str], dense: Sequence[str]) -> list[bool]:
    """Per sample: is the answer, normalised, the one that the dense model gave?

    Examples:
        >>> agreement(["Red.", "two"], ["red", "three"])
        [True, False]
    """
    return [normalise(answer) == normalise(other) for answer, other in zip(answers, dense, strict=True)]


def flips(correct: Sequence[bool], dense: Sequence[bool]) -> tuple[int, int]:
    """Counts (right to wrong, wrong to right) against the dense model: a small mean drop can hide many of both.

    Examples:
        >>> flips([True, False, False], [True, True, False])
        (1, 0)
    """
    pairs = list(zip(correct, dense, strict=True))
    return sum(was and not now for now, was in pairs), sum(now and not was for now, was in pairs)


def _ratio_of_sums(
    totals: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], axis: int = -1
) -> npt.NDArray[np.float64]:
    return np.asarray(totals.sum(axis=axis) / sizes.sum(axis=axis))
