"""The results table on the terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tokenprune.evaluate.methods import show_budget
from tokenprune.evaluate.summary import STAGES, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def result_tables(rows: Sequence[Row], console: "Console") -> "Iterator[Table]":
    """The results as one table, or on a terminal too narrow for it as two: answers, then times."""
    whole = _table(rows, answers=True, times=True)
    if console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width:
        yield whole
    else:
        yield _table(rows, answers=True, times=False)
        yield _table(rows, answers=False, times=True)


def kind_table(rows: Sequence[Row]) -> "Table":
    """Accuracy by kind of question: a line per method and budget, a column per kind."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    longest = max(len(row.method) for row in rows)
    table.add_column("Accuracy %\nby kind", overflow="fold", min_width=min(longest, 16), max_width=36)
    table.add_column("Tokens", justify="right", no_wrap=True)
    for kind in rows[0].kinds:
        # Long names break at their underscores, so that the columns stay as narrow as the numbers allow.
        table.add_column("\n".join((kind or "(none)").split("_")), justify="right", overflow="fold")
    for _, group in groupby(rows, key=lambda row: repr(row.keep)):
        for row in group:
            table.add_row(row.method, _tokens(row), *(f"{100 * value:.0f}" for value in row.kinds.values()))
        table.add_section()
    return table


def _table(rows: Sequence[Row], *, answers: bool, times: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    longest = max(len(row.method) for row in rows)
    table.add_column("Method", overflow="fold", min_width=min(longest, 16), max_width=36)
    table.add_column("Tokens", justify="right", no_wrap=True)
    headers = ["Acc %", "vs Random [95% CI]", "Agree %", "R→W", "W→R"] if answers else []
    headers += [f"{stage.capitalize()}\nms" for stage in STAGES] if times else []
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: repr(row.keep)):
        members = list(group)
        best = max(row.accuracy.value for row in members)
        leaders = [row for row in members if row.accuracy.value == best]
        for row in members:
            cells = [row.method, _tokens(row), *(_answers(row) if answers else []), *(_times(row) if times else [])]
            table.add_row(*cells, style="bold" if leaders == [row] and len(members) > 1 else None)
        table.add_section()
    return table


def _tokens(row: Row) -> str:
    share = "" if row.keep is None else f" ({100 * row.tokens_out / row.tokens_in:.1f}%)"
    return f"{row.tokens_out:.0f}{share}"


def _answers(row: Row) -> list[str]:
    accuracy = f"{100 * row.accuracy.value:.1f}"
    if row.seed_sd is not None:
        accuracy += f" ±{100 * row.seed_sd:.1f}"
    difference = (
        "-" if row.difference is None else _signed(row.difference.value, row.difference.low, row.difference.high)
    )
    flips = ["-", "-"] if row.is_dense else [f"{row.right_to_wrong:.0f}", f"{row.wrong_to_right:.0f}"]
    return [accuracy, difference, "-" if row.is_dense else f"{100 * row.agreement:.1f}", *flips]


def _signed(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _times(row: Row) -> list[str]:
    return ["-" if stage not in row.times else f"{row.times[stage].median:.2f}" for stage in STAGES]


def legend(rows: Sequence[Row]) -> str:
    """What the columns mean, in a few lines."""
    seeds = max(row.seeds for row in rows)
    budgets = ", ".join(show_budget(row.keep) for row in rows if row.keep is not None and row.method == "random")
    return (
        f"Budgets: {budgets}. Tokens: visual tokens per image, mean over decoder layers. Bold: highest accuracy at "
        "the budget. "
        f"Random: mean ± standard deviation over {seeds} seeds. vs Random: points, paired bootstrap. "
        "Agree: same answer as the dense model; "
        "R→W, W→R: answers that turned from right to wrong and back (random: mean). "
        "Times: median ms per question; vision is computed once per picture and shared."
    )
