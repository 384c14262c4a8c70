"""P-values for paired answers, and their correction when there are several: scipy and statsmodels do the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test

from tokenprune.core.fields import check_choice
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.statistics import RESAMPLES

Correction = Literal["holm", "bonferroni", "fdr_bh", "fdr_by"]


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's exact test on the samples where two runs differ in correctness.

    Attributes:
        only_first: samples that only the first run gets right.
        only_second: samples that only the second run gets right.
        p_value: two-sided, exact (binomial): how likely so uneven a split is when either is as good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (`statsmodels.stats.contingency_tables.mcnemar`).

    It takes samples for independent. Where several questions show one image, or a run is a mean over seeds, use
    `paired_p_value`.

    Args:
        first: correctness per sample of one run.
        second: the same samples in the other run.

    Raises:
        ValueError: when there is no sample, or the numbers differ.

    Examples:
        >>> mcnemar([True] * 6 + [False], [False] * 6 + [True])
        McNemar(only_first=6, only_second=1, p_value=0.125)
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"mcnemar: need the same samples twice, got {a.size} and {b.size}; pair them up")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    table = [[int((a & b).sum()), only_first], [only_second, int((~a & ~b).sum())]]
    result = need("statsmodels.stats.contingency_tables").mcnemar(table, exact=True)
    return McNemar(only_first=only_first, only_second=only_second, p_value=float(min(1.0, result.pvalue)))


def paired_p_value(method: npt.ArrayLike, reference: npt.ArrayLike, units: Sequence[str], *, seed: int = 0) -> float:
    """Two-sided p-value of a paired difference: method and reference change places, image by image.

    `scipy.stats.permutation_test` over whole units (all questions about one image change places together): exact for up
    to 13 units, else with 9999 random exchanges, so never below 1/5000.

    Args:
        method: (n,) correctness per sample, or (runs, n), averaged over runs (seeds) first.
        reference: the same for what is compared against.
        units: the unit of each sample.
        seed: of the exchanges.

    Raises:
        ValueError: when there is no sample, or the numbers of samples differ.

    Examples:
        >>> paired_p_value([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], list("abcde"))
        0.0625
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)).mean(axis=0) for values in (method, reference))
    if first.shape != second.shape or first.size != len(units) or first.size == 0:
        raise ValueError(
            f"paired_p_value: need the same samples twice, each with its unit, got {first.size}, {second.size} and "
            f"{len(units)} units; pair them up"
        )
    names, member = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    totals = [np.bincount(member, weights=values) for values in (first, second)]
    # Units without a difference change nothing when exchanged; leaving them out leaves the p-value as it is.
    differs = totals[0] != totals[1]
    if int(differs.sum()) < 2:
        return 1.0
    result: Any = permutation_test(
        (totals[0][differs], totals[1][differs]),
        _difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // len(names)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def corrected(p_values: Sequence[float], method: Correction = "holm") -> list[float]:
    """P-values corrected for their number (`statsmodels.stats.multitest.multipletests`).

    Args:
        p_values: one per comparison of a family, for example all methods at one budget.
        method: "holm" (default) and "bonferroni" bound the chance of any false finding; "fdr_bh" and "fdr_by" the share
            of false ones among the findings.

    Raises:
        ValueError: for an unknown method or p-values outside [0, 1].

    Examples:
        >>> corrected([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    check_choice("corrected", "method", method, get_args(Correction))
    bad = [p for p in p_values if not 0.0 <= p <= 1.0]
    if bad:
        raise ValueError(f"corrected: p_values must lie in [0, 1], got {bad[0]}; leave out comparisons without one")
    if not p_values:
        return []
    values = need("statsmodels.stats.multitest").multipletests(list(p_values), method=method)[1]
    return [float(value) for value in values]


def _difference(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], axis: int = -1
) -> npt.NDArray[np.float64]:
    return np.asarray((first - second).sum(axis=axis))
