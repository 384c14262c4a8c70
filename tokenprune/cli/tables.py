"""The results table on the terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tokenprune.evaluate.result_table import ANSWERS, answers_text, legend, times_text, tokens_text
from tokenprune.evaluate.summary import STAGES, Row

__all__ = ["kind_table", "legend", "result_tables"]

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
    for _, group in groupby(rows, key=lambda row: (row.is_dense, repr(row.keep))):
        for row in group:
            table.add_row(row.method, tokens_text(row), *(f"{100 * value:.0f}" for value in row.kinds.values()))
        table.add_section()
    return table


def _table(rows: Sequence[Row], *, answers: bool, times: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    longest = max(len(row.method) for row in rows)
    table.add_column("Method", overflow="fold", min_width=min(longest, 16), max_width=36)
    table.add_column("Tokens", justify="right", no_wrap=True)
    headers = list(ANSWERS) if answers else []
    headers += [f"{stage.capitalize()}\nms" for stage in STAGES] if times else []
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: (row.is_dense, repr(row.keep))):
        members = list(group)
        best = max(row.accuracy.value for row in members)
        # Fixed methods reach different numbers of tokens: none of them leads.
        leaders = [row for row in members if row.accuracy.value == best and not row.is_fixed]
        for row in members:
            cells = [
                row.method,
                tokens_text(row),
                *(answers_text(row) if answers else []),
                *(times_text(row) if times else []),
            ]
            table.add_row(*cells, style="bold" if leaders == [row] and len(members) > 1 else None)
        table.add_section()
    return table
