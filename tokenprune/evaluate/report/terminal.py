"""A `Report` on a terminal: tables too wide for it are printed in parts, columns whole, no number cut."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokenprune.evaluate.report.report import Report, Shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

WIDEST_NAME = 44
"""Characters of the first column before it breaks into lines."""


def rendered(report: Report, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
    """Give tables, then findings, for a console of any width."""
    from rich.text import Text

    for shown in report.shown:
        for table in in_parts(shown, console, options.max_width):
            yield table
            yield Text()
    for sentence in report.findings:
        yield Text(sentence)


def in_parts(shown: Shown, console: "Console", width: int) -> "Iterator[Table]":
    """Give the table, or where it is wider than `width` two or more with some of the columns each.

    The first column names the rows and is in every part.
    """
    rest = list(range(1, len(shown.columns)))
    if not rest:
        yield _table(shown, rest, width)
    while rest:
        fits = len(rest)
        while fits > 1 and _width(_table(shown, rest[:fits], width), console) > width:
            fits -= 1
        yield _table(shown, rest[:fits], width)
        rest = rest[fits:]


def _table(shown: Shown, columns: Sequence[int], width: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=Text(shown.title), title_justify="left")
    table.add_column(Text(shown.columns[0]), overflow="fold", max_width=min(WIDEST_NAME, max(8, width // 2)))
    for column in columns:
        table.add_column(Text(shown.columns[column]), justify="right", overflow="fold")
    for place, row in enumerate(shown.rows):
        cells = (Text(row[0]), *(Text(row[column]) for column in columns))
        table.add_row(*cells, style="bold" if place in shown.strong else None)
    return table


def _width(table: "Table", console: "Console") -> int:
    return console.measure(table, options=console.options.update(max_width=1000)).maximum
