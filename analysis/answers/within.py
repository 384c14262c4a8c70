"""Do two numbers go together within an image? Correlation after each image's own mean is taken out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from tokenprune.evaluate.statistics import CONFIDENCE, RESAMPLES, Interval


def within_correlation(x: npt.ArrayLike, y: npt.ArrayLike, units: Sequence[str], *, seed: int = 0) -> Interval:
    r"""Pooled correlation within samples: $\sum_{im}\tilde x_{im}\tilde y_{im}/\sqrt{\sum\tilde x^2\sum\tilde y^2}$.

    $\tilde x_{im}=x_{im}-\frac1M\sum_m x_{im}$: what makes a sample easy or an image rich falls out, so that only
    differences between kept sets of the same image count. The interval resamples whole images (percentile bootstrap,
    `scipy.stats.bootstrap`).

    Args:
        x: (m, n), m variants of n samples, for example the objective's value of m kept sets.
        y: the same for the other number, for example correctness.
        units: the image of each sample.
        seed: of the resampling.

    Returns:
        In [-1, 1]; NaN, with 0 units, when x or y never differs within a sample.

    Raises:
        ValueError: when shapes do not fit or there are fewer than two variants.

    Examples:
        >>> within_correlation([[0, 5], [1, 6]], [[0, 0], [1, 1]], ["a", "b"]).value
        1.0
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] < 2 or a.shape[1] != len(units):
        raise ValueError(
            f"within_correlation: x {a.shape} and y {b.shape} must both be (variants, {len(units)} samples), with two "
            "variants or more"
        )
    a, b = a - a.mean(0), b - b.mean(0)
    names, member = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    parts = [np.bincount(member, weights=product.sum(0)).astype(np.float64) for product in (a * b, a * a, b * b)]
    if min(parts[1].sum(), parts[2].sum()) <= 1e-24:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), units=0)
    value = float(_ratio(parts[0], parts[1], parts[2]))
    if len(names) == 1:
        return Interval(value=value, low=float("nan"), high=float("nan"), units=1)
    result: Any = bootstrap(
        parts,
        _ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, 10**5 // len(names)),
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(value=value, low=float(low), high=float(high), units=len(names))


def _ratio(
    xy: npt.NDArray[np.float64], xx: npt.NDArray[np.float64], yy: npt.NDArray[np.float64], axis: int = -1
) -> npt.NDArray[np.float64]:
    below = np.sqrt(xx.sum(axis=axis) * yy.sum(axis=axis))
    return np.asarray(np.divide(xy.sum(axis=axis), below, out=np.zeros_like(below), where=below > 0))
