"""Does the model know when it is right? Expected calibration error and Brier score of its own probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from tokenprune.evaluate.statistics import CONFIDENCE, RESAMPLES, Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """How confidence and correctness go together.

    Attributes:
        ece: expected calibration error over `CALIBRATION_BINS` bins of equal width, with an interval over images. It is
            biased upwards in small samples, and so is its interval: compare methods on the same samples.
        brier: mean squared difference of confidence and correctness.
        counts: float (bins,), answers in each bin of confidence.
        confidence: float (bins,), their mean confidence; NaN in empty bins.
        accuracy: float (bins,), their accuracy; NaN in empty bins.
    """

    ece: Interval
    brier: Interval
    counts: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    def plot(self, ax: "Axes", *, label: str = "", colour: str = "#0072B2") -> "Axes":
        """Accuracy over confidence in bins with 2% of the answers or more; under the diagonal it is too sure."""
        filled = self.counts >= max(1.0, 0.02 * self.counts.sum())  # a bin of two answers says nothing
        ax.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
        ax.plot(self.confidence[filled], self.accuracy[filled], color=colour, linewidth=1.0, label=label)
        sizes = 8 + 90 * self.counts[filled] / self.counts.sum()
        ax.scatter(self.confidence[filled], self.accuracy[filled], s=sizes, color=colour, linewidths=0)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_xlabel("probability of the answer (size: share of answers)")
        ax.set_ylabel("share right")
        return ax


def measure_calibration(confidence: npt.ArrayLike, correct: npt.ArrayLike, units: Sequence[str]) -> Calibration:
    r"""Calibration of answers.

    $\mathrm{ECE}=\sum_b \frac{n_b}{n}\,\lvert \mathrm{acc}(b)-\mathrm{conf}(b)\rvert$ (Naeini et al., 2015) over ten
    bins of equal width, each closed on the right, and Brier's $\frac1n\sum_i (c_i-y_i)^2$.

    Args:
        confidence: (n,) or (runs, n), in [0, 1]; runs (seeds) are pooled.
        correct: the same shape, 0 or 1.
        units: what is resampled, per sample.

    Raises:
        ValueError: when shapes do not fit or a confidence lies outside [0, 1].

    Examples:
        >>> found = measure_calibration([0.95, 0.95], [1, 0], ["a", "b"])
        >>> round(found.ece.value, 6), round(found.brier.value, 6)
        (0.45, 0.4525)
    """
    p, y = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (confidence, correct))
    if p.shape != y.shape or p.shape[1] != len(units) or p.size == 0:
        raise ValueError(
            f"measure_calibration: confidence {p.shape}, correct {y.shape} and {len(units)} units do not fit; give one "
            "of each per answer"
        )
    if not ((p >= 0.0) & (p <= 1.0 + 1e-6)).all():
        raise ValueError("measure_calibration: confidence must lie in [0, 1]; give probabilities, not logits")
    p = p.clip(0.0, 1.0)
    place = np.clip(np.ceil(p * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    names, member = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    counts, sure, right = (np.zeros((CALIBRATION_BINS, len(names))) for _ in range(3))
    for run in range(p.shape[0]):
        np.add.at(counts, (place[run], member), 1.0)
        np.add.at(sure, (place[run], member), p[run])
        np.add.at(right, (place[run], member), y[run])
    n, total_sure, total_right = counts.sum(1), sure.sum(1), right.sum(1)
    empty = np.full(CALIBRATION_BINS, np.nan)
    return Calibration(
        ece=_ece_interval(right - sure, counts.sum(0)),
        brier=mean_interval((p - y) ** 2, units),
        counts=n,
        confidence=np.divide(total_sure, n, out=empty.copy(), where=n > 0),
        accuracy=np.divide(total_right, n, out=empty.copy(), where=n > 0),
    )


def _ece_interval(gaps: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> Interval:
    """Each unit gives its part of every bin's gap, so that a resample is a sum."""
    value = float(np.abs(gaps.sum(1)).sum() / sizes.sum())
    if sizes.size == 1:
        return Interval(value=value, low=float("nan"), high=float("nan"), units=1)

    def statistic(*parts: npt.NDArray[np.float64], axis: int = -1) -> npt.NDArray[np.float64]:
        whole = sum(np.abs(part.sum(axis=axis)) for part in parts[:-1])
        return np.asarray(whole / parts[-1].sum(axis=axis))

    used = gaps[np.abs(gaps).sum(1) > 0]
    result: Any = bootstrap(
        (*used, sizes),
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, 10**5 // sizes.size),
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return Interval(value=value, low=float(low), high=float(high), units=sizes.size)
