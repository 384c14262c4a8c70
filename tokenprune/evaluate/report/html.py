"""A `Report` as one HTML file that needs nothing else: it opens offline, without any request."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tokenprune.evaluate.extras import need
from tokenprune.evaluate.report.report import Report, Shown, cell_text
from tokenprune.evaluate.report.slides import Card, Picture, Slide

LONGEST = 600
"""Rows of a table that the page shows; the CSV file has them all."""
_NUMBER = re.compile(r"[+\-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+\-]?\d+)?")
_MISSING = {"", "-", "n/a", "nan"}


@dataclass(frozen=True)
class _Figure:
    picture: Picture
    caption: str


@dataclass(frozen=True)
class _Gallery:
    slides: Sequence[Slide]
    title: str = ""
    note: str = ""


def render(report: Report, *, folder: str = "") -> str:
    """Give the report as HTML with pictures, styles and script inside.

    Every text of the report is escaped. The file forbids itself to load anything (Content-Security-Policy), so a
    report can be opened and passed on without telling anybody.

    Args:
        report: the content.
        folder: the name of the run folder that it belongs to.

    Raises:
        ImportError: says what to install when jinja2 is missing.

    Examples:
        >>> text = render(Report(title="a < b"))
        >>> "<title>a &lt; b</title>" in text, "http://" in text
        (True, False)
    """
    jinja2 = need("jinja2")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters["uri"] = data_uri
    environment.filters["columns"] = numeric_columns
    environment.filters["sort_key"] = sort_key
    environment.tests["table"] = lambda block: isinstance(block, Shown)
    environment.tests["figure"] = lambda block: isinstance(block, _Figure)
    config = dict(report.configuration)
    versions, git = config.pop("versions", {}), config.pop("git", None)
    facts = {name: value for name, value in (("What ran", report.kind), ("Folder", folder)) if value}
    if git:
        facts["Commit"] = git["commit"] + (", with changes" if git["changed"] else "")
    # The two files are this package's own, so they are put in as they are.
    text: str = environment.get_template("report.html").render(
        page=report,
        sections=_sections(report),
        versions=versions,
        facts=facts,
        style=_source("report.css"),
        script=_source("report.js"),
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )
    return text


def _sections(report: Report) -> list[tuple[str, Sequence[object]]]:
    """Give headlines with what is under them; a headline without anything is left out."""
    figures = [
        _Figure(Picture(data=png(figure), alt=_alt(report, f"{name}.png")), report.notes.get(f"{name}.png", ""))
        for name, figure in report.figures.items()
    ]
    galleries = [
        _Gallery(slides, report.title_of(name), report.notes.get(name, "")) for name, slides in report.galleries.items()
    ]
    if report.images:
        galleries.append(_Gallery([_image(report, name, data) for name, data in report.images.items()]))
    sections = (
        ("Results", report.shown),
        ("Figures", figures),
        ("Samples", galleries),
        ("All numbers", [_whole(report, name) for name in report.tables]),
    )
    return [section for section in sections if section[1]]


def _image(report: Report, name: str, data: bytes) -> Slide:
    kind = "png" if name.lower().endswith(".png") else "jpeg"
    picture = Picture(data=data, alt=_alt(report, name), kind=kind)
    card = Card(title="", picture=picture, lines=[report.notes.get(name, "")])
    return Slide(title=report.title_of(name), cards=[card])


def _alt(report: Report, name: str) -> str:
    return f"{report.title_of(name)}. {report.notes.get(name, '')}".strip()


def _whole(report: Report, name: str) -> Shown:
    """Give a table with all digits, as its CSV file has them."""
    table, file = report.tables[name], f"{name}.csv"
    cut = f" The first {LONGEST} of {len(table)} rows; the file has them all." if len(table) > LONGEST else ""
    rows = table.head(LONGEST).itertuples(index=False, name=None)
    return Shown(
        title=f"{report.title_of(file)} ({file})",
        columns=tuple(map(str, table.columns)),
        rows=tuple(tuple(map(cell_text, row)) for row in rows),
        note=f"{report.notes.get(file, '')}{cut}".strip(),
    )


def png(figure: Any) -> bytes:  # noqa: ANN401
    """Give a figure as the bytes of a PNG file."""
    if isinstance(figure, bytes):
        return figure
    from tokenprune.evaluate.figures import to_png

    return to_png(figure)


def data_uri(picture: Picture) -> str:
    """Give the picture as a data URI.

    Raises:
        ValueError: when its kind is neither "png" nor "jpeg".

    Examples:
        >>> data_uri(Picture(data=b"abc", alt="nothing"))
        'data:image/png;base64,YWJj'
    """
    if picture.kind not in ("png", "jpeg"):
        raise ValueError(f"Picture {picture.alt!r}: kind must be 'png' or 'jpeg', got {picture.kind!r}")
    return f"data:image/{picture.kind};base64,{base64.b64encode(picture.data).decode()}"


def sort_key(cell: str) -> float | None:
    """Give the number that a cell begins with; None when it begins with none.

    Examples:
        >>> sort_key("+23.2 [21.0, 25.4]"), sort_key("28 (11.1%)"), sort_key("-"), sort_key("greedy")
        (23.2, 28.0, None, None)
    """
    found = _NUMBER.match(cell.strip())
    return None if found is None else float(found.group())


def numeric_columns(table: Shown) -> list[bool]:
    """Per column: do all cells that are not missing begin with a number (and is there one)?

    Examples:
        >>> numeric_columns(Shown(title="", columns=("name", "n"), rows=(("a", "1 (2%)"), ("b", "-"))))
        [False, True]
    """
    columns: list[list[str]] = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    present = [[cell for cell in column if cell.strip().lower() not in _MISSING] for column in columns]
    return [bool(cells) and all(sort_key(cell) is not None for cell in cells) for cells in present]


def _source(name: str) -> Any:  # noqa: ANN401  (jinja2 wants str or None)
    return files("tokenprune.evaluate.report").joinpath("templates", name).read_text(encoding="utf-8")
