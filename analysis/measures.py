"""What the reports of analyses share: tables of means with intervals, as frames and for people, and figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tokenprune.analysis.intervals import show
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.report import Shown, frame
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_T = TypeVar("_T")
Watch = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the images or batches of an analysis, for a progress bar; `iter` watches nothing."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")


def styled(analysis: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let an analysis draw in the house's style."""

    @wraps(analysis)
    def run(*args: _P.args, **options: _P.kwargs) -> _T:
        from tokenprune.evaluate.figures import STYLE

        for package in ("matplotlib", "statsmodels", "pandas"):  # before any work
            need(package)
        with need("matplotlib").rc_context(STYLE):
            return analysis(*args, **options)

    return run


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure in the house's layout."""
    made: Any = need("matplotlib.figure").Figure(figsize=(width, height), dpi=150, layout="constrained")
    return made


def means_table(
    title: str,
    names: Sequence[str],
    means: Sequence[Mapping[str, Interval]],
    columns: Mapping[str, tuple[str, bool]],
    *,
    first: str = "Strategy",
    more: Mapping[str, Sequence[str]] | None = None,
) -> Shown:
    """Show a row per name and a column per measure.

    Args:
        title: a headline.
        names: of the rows.
        means: of each row, by measure.
        columns: by measure, the head of its column and whether it is shown as a percentage.
        first: head of the names.
        more: further columns, a text per row.
    """
    further = more or {}
    rows = [
        (
            name,  # intervals on a second line: the columns stay narrow
            *(show(row[measure], percent=percent).replace(" [", "\n[") for measure, (_, percent) in columns.items()),
            *(column[place] for column in further.values()),
        )
        for place, (name, row) in enumerate(zip(names, means, strict=True))
    ]
    return Shown(title=title, columns=(first, *(head for head, _ in columns.values()), *further), rows=tuple(rows))


def texts(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Shown:
    """Show rows of texts."""
    return Shown(title=title, columns=tuple(columns), rows=tuple(tuple(row) for row in rows))


def long_table(
    names: Sequence[str], means: Sequence[Mapping[str, Interval]], *, first: str = "strategy"
) -> "pd.DataFrame":
    """Give a frame with one row per name and measure."""
    rows = [
        (name, measure, *numbers(mean)) for name, row in zip(names, means, strict=True) for measure, mean in row.items()
    ]
    return frame((first, "measure", "value", "low", "high", "images"), rows)


def numbers(mean: Interval) -> tuple[float | None, float | None, float | None, int]:
    """Give value, low, high and units; None where there is no number."""
    value, low, high = (
        float(number) if mean.units and number == number else None for number in (mean.value, mean.low, mean.high)
    )
    return value, low, high, mean.units
