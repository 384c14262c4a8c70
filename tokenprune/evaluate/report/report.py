"""`Report`: what a run found, once, for files, pages, terminals and programs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.evaluate.extras import need
from tokenprune.evaluate.report.slides import Slide

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Show some numbers to people: cells are rounded texts such as "23.2 [21.0, 25.4]".

    Attributes:
        title: a headline.
        columns: names of the columns; line breaks are allowed.
        rows: texts, one per column; a column whose cells begin with numbers sorts by these numbers.
        note: what the columns mean.
        strong: places of the rows that are printed bold.

    Raises:
        ValueError: when a row has another number of cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    strong: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Shown {self.title!r}: every row needs {len(self.columns)} cells, one per column, got {len(row)}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Hold what a run found, for people and for programs.

    Attributes:
        title: a headline.
        kind: what ran: "compare", "optimality", "analyze alignment", ...
        findings: what came out, in sentences with numbers.
        tables: frames with all digits, one row per thing measured; `tables["a"]` is the file a.csv.
        shown: the same for people: some columns, rounded.
        figures: drawn, or as PNG bytes; `figures["a"]` is the file a.png.
        images: PNG or JPEG files to page through, by file name.
        galleries: slides to page through, by name; `galleries["a"]` is the file a.json with the folder a.
        titles: headlines of files, by file name; others are called by their names.
        notes: what one sees in a file and how to read it, by file name, of galleries by their names.
        configuration: everything that the numbers depend on, as plain JSON values.
        command: a shell line that does the same again; "" for a call from Python.
        conditions: under which the numbers were measured, in one line.
        folder: where it belongs, for runs that keep a folder of their own.
        complete: False when the run was stopped and the same command goes on with it.
    """

    title: str
    kind: str = ""
    findings: Sequence[str] = ()
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    shown: Sequence[Shown] = ()
    figures: Mapping[str, "Figure | bytes"] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict)
    galleries: Mapping[str, Sequence[Slide]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    conditions: str = ""
    folder: Path | None = None
    complete: bool = True

    def title_of(self, name: str) -> str:
        """Give the headline of a file or gallery."""
        stem = Path(name).stem.replace("_", " ")
        return self.titles.get(name, stem[:1].upper() + stem[1:])

    def write(self, folder: Path) -> Path:
        """Write CSV and PNG files, manifest.json and report.html, each file whole or not at all.

        Args:
            folder: is made when it is not there.

        Returns:
            The page.

        Raises:
            ImportError: says what to install when jinja2 or matplotlib is missing.
        """
        from tokenprune.evaluate.report.folder import write

        return write(self, folder)

    def to_json(self) -> dict[str, Any]:
        """Give titles, findings, tables and configuration as plain JSON values; what is no number is null."""
        return {
            "kind": self.kind,
            "title": self.title,
            "complete": self.complete,
            "findings": list(self.findings),
            "tables": {name: records(table) for name, table in self.tables.items()},
            "configuration": plain(dict(self.configuration)),
            "conditions": self.conditions,
            "command": self.command,
        }

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from tokenprune.evaluate.report.terminal import rendered

        yield from rendered(self, console, options)

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame of its own, so that neither's styles reach the other."""
        from html import escape

        from tokenprune.evaluate.report.html import render

        return f'<iframe srcdoc="{escape(render(self))}" width="100%" height="720" style="border:0"></iframe>'


def frame(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> "pd.DataFrame":
    """Make a frame of rows; columns of one kind of number get its type, others keep their values.

    Args:
        columns: their names.
        rows: one value per column.

    Examples:
        >>> frame(["a", "b"], [["x", 1], ["y", 2]])["b"].sum()
        np.int64(3)
    """
    pandas = need("pandas")
    made: pd.DataFrame = pandas.DataFrame([tuple(row) for row in rows], columns=list(columns), dtype=object)
    for place, name in enumerate(columns):
        kinds = {type(row[place]) for row in rows}
        if kinds in ({int}, {bool}):
            made[name] = made[name].astype(kinds.pop())
        elif kinds and kinds <= {float, type(None)}:
            made[name] = made[name].astype(float)
    return made


def cell_text(value: Any) -> str:  # noqa: ANN401
    """Give a value of a frame as CSV files have it: all digits, whole numbers without a point, nothing for None.

    Examples:
        >>> cell_text(0.1), cell_text(9.0), cell_text(float("nan")), cell_text(True)
        ('0.1', '9', '', 'True')
    """
    if value is None or value != value:
        return ""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value)) if whole else str(value)


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Give the rows of a frame as plain JSON values."""
    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict(orient="records")]


def plain(value: Any) -> Any:  # noqa: ANN401
    """Turn a value into plain JSON: numbers of NumPy, paths and tuples become Python's own, what is no number null.

    Examples:
        >>> plain({"a": (1, float("nan"), Path("x"))})
        {'a': [1, None, 'x']}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or (isinstance(value, bool | str | int) and type(value) in (bool, str, int)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a number of NumPy
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int) else str(value)


def as_text(report: Report, **more: object) -> str:
    """Give the report as the text that `--json` prints; `more` is added at the top level."""
    return json.dumps({**report.to_json(), **plain(more)}, indent=2, ensure_ascii=False, allow_nan=False)
