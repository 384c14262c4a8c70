"""`Outcome`: what an analysis gives, and how it becomes a run folder with a manifest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.analysis.intervals import show
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.galleries import write_gallery
from tokenprune.evaluate.manifest import Item, Manifest, Summary, csv_bytes, write_manifest
from tokenprune.evaluate.page import Slide
from tokenprune.evaluate.run_folder import write_atomically
from tokenprune.evaluate.run_report import write_report
from tokenprune.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, headers and rows."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What an analysis gives.

    Attributes:
        title: a headline.
        tables: title, headers and rows, printed.
        files: CSV files by name, as rows.
        figures: PNG files by name, drawn.
        galleries: slides by name, to page through.
        notes: what one sees in a file or gallery, by its name.
        images: how many images there were.
        findings: sentences, printed under the tables.
        strategies: texts of the strategies that ran.
        facts: further parts of the configuration.
        folder: where it belongs, for analyses that keep a run folder of their own; None for the default.
        complete: False when the analysis was stopped and the same command goes on with it.
    """

    title: str
    tables: Sequence[Table]
    files: Mapping[str, Sequence[Sequence[object]]]
    figures: Mapping[str, "Figure"]
    galleries: Mapping[str, Sequence[Slide]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    images: int
    findings: Sequence[str] = ()
    strategies: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    complete: bool = True


def write_outcome(
    folder: Path, outcome: Outcome, *, kind: str, command: str, configuration: Mapping[str, Any]
) -> Manifest:
    """Write tables, figures and the manifest, each file complete or not at all.

    Args:
        folder: exists.
        outcome: what to write.
        kind: what ran, for example "analyze alignment".
        command: a shell line that does it again.
        configuration: everything that the numbers depend on.
    """
    from tokenprune.evaluate.figures import to_png

    for name, rows in outcome.files.items():
        write_atomically(folder / name, csv_bytes(rows))
    for name, figure in outcome.figures.items():
        write_atomically(folder / name, to_png(figure))
    galleries = tuple(
        replace(_item(name, outcome), file=write_gallery(folder, name, slides))
        for name, slides in outcome.galleries.items()
    )
    manifest = Manifest(
        kind=kind,
        title=outcome.title,
        command=command,
        configuration=dict(configuration),
        findings=tuple(outcome.findings),
        summaries=tuple(
            Summary(title=title, columns=tuple(headers), rows=tuple(tuple(row) for row in rows))
            for title, headers, rows in outcome.tables
        ),
        tables=tuple(_item(name, outcome) for name in outcome.files),
        figures=tuple(_item(name, outcome) for name in outcome.figures),
        galleries=galleries,
    )
    write_manifest(folder, manifest)
    write_report(folder)
    return manifest


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure in the house's layout."""
    made: Any = need("matplotlib.figure").Figure(figsize=(width, height), dpi=150, layout="constrained")
    return made


def means_table(
    title: str,
    names: Sequence[str],
    means: Sequence[Mapping[str, Interval]],
    columns: Mapping[str, tuple[str, bool]],
    *,
    first: str = "Strategy",
) -> Table:
    """A row per name, a column per measure: its head, and whether it is shown as a percentage."""
    rows = [
        [
            name,  # intervals on a second line: the columns stay narrow
            *(show(row[measure], percent=percent).replace(" [", "\n[") for measure, (_, percent) in columns.items()),
        ]
        for name, row in zip(names, means, strict=True)
    ]
    return title, [first, *(head for head, _ in columns.values())], rows


def long_rows(
    names: Sequence[str], means: Sequence[Mapping[str, Interval]], *, first: str = "strategy"
) -> list[Sequence[object]]:
    """One row per name and measure, after the header."""
    return [
        (first, "measure", "value", "low", "high", "images"),
        *(
            (name, measure, *numbers(mean))
            for name, row in zip(names, means, strict=True)
            for measure, mean in row.items()
        ),
    ]


def numbers(mean: Interval) -> Iterator[object]:
    """Value, low, high and units as CSV cells; empty where there is no number."""
    for number in (mean.value, mean.low, mean.high):
        yield f"{number:.6g}" if mean.units and number == number else ""
    yield mean.units


def _item(name: str, outcome: Outcome) -> Item:
    stem = Path(name).stem.replace("_", " ")
    return Item(file=name, title=stem[:1].upper() + stem[1:], note=outcome.notes.get(name, ""))
