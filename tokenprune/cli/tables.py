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
    """Give the results as one table, or for a narrower terminal as several: answers, then times, columns whole."""
    answers, times = range(len(ANSWERS)), range(len(ANSWERS), len(ANSWERS) + len(STAGES))
    if _width(_table(rows, [*answers, *times]), console) <= console.width:
        yield _table(rows, [*answers, *times])
        return
    for columns in (answers, times):
        rest = list(columns)
        while rest:
            fits = len(rest)
            while fits > 1 and _width(_table(rows, rest[:fits]), console) > console.width:
                fits -= 1
            yield _table(rows, rest[:fits])
            rest = rest[fits:]


def _width(table: "Table", console: "Console") -> int:
    return console.measure(table, options=console.options.update(max_width=1000)).maximum


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


def _table(rows: Sequence[Row], columns: Sequence[int]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    longest = max(len(row.method) for row in rows)
    table.add_column("Method", overflow="fold", min_width=min(longest, 16), max_width=36)
    table.add_column("Tokens", justify="right", no_wrap=True)
    headers = [*ANSWERS, *(f"{stage.capitalize()}\nms" for stage in STAGES)]
    for column in columns:
        table.add_column(headers[column], justify="right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: (row.is_dense, repr(row.keep))):
        members = list(group)
        best = max(row.accuracy.value for row in members)
        # Fixed methods reach different numbers of tokens: none of them leads.
        leaders = [row for row in members if row.accuracy.value == best and not row.is_fixed]
        for row in members:
            numbers = [*answers_text(row), *times_text(row)]
            cells = [row.method, tokens_text(row), *(numbers[column] for column in columns)]
            table.add_row(*cells, style="bold" if leaders == [row] and len(members) > 1 else None)
        table.add_section()
    return table
