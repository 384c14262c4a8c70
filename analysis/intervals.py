"""Means over images with their intervals, for every number of a measurement at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenprune.evaluate.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def over_images(values: Sequence[float], ids: Sequence[str]) -> Interval:
    """Mean over images with a 95% bootstrap interval that resamples images; images without a value (NaN) are left out.

    `units` of the result says how many images had a value; with none, all is NaN.

    Examples:
        >>> over_images([1.0, float("nan"), 1.0], ["a", "b", "c"])
        Interval(value=1.0, low=1.0, high=1.0, units=2)
    """
    known = [(value, name) for value, name in zip(values, ids, strict=True) if not math.isnan(value)]
    if not known:
        return Interval(value=math.nan, low=math.nan, high=math.nan, units=0)
    return mean_interval([value for value, _ in known], [name for _, name in known])


def summarise(measures: Iterable["DataclassInstance"], ids: Sequence[str]) -> dict[str, Interval]:
    """`over_images` for every field of a list of flat dataclasses of numbers, one entry per image.

    Raises:
        ValueError: when there is no image.
    """
    rows: list[Mapping[str, Any]] = [asdict(entry) for entry in measures]
    if not rows:
        raise ValueError("summarise: there are no images; give at least one")
    return {name: over_images([float(row[name]) for row in rows], ids) for name in rows[0]}


def show(interval: Interval, *, percent: bool = False) -> str:
    """An interval as tables and sentences print it.

    Examples:
        >>> show(Interval(value=0.5, low=0.25, high=0.75, units=4), percent=True)
        '50% [25, 75]'
    """
    if interval.units == 0:
        return "-"
    scale, digits = (100.0, 0) if percent else (1.0, 2 if abs(interval.value) < 100 else 1)
    value, low, high = (f"{scale * number:z.{digits}f}" for number in (interval.value, interval.low, interval.high))
    value += "%" if percent else ""
    alone = interval.units == 1 or interval.low == interval.value == interval.high
    return value if alone else f"{value} [{low}, {high}]"
