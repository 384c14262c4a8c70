"""A `Page` as one HTML file that needs nothing else: it opens offline, without any request."""

import base64
import json
import re
from importlib.resources import files
from typing import Any

from tokenprune.evaluate.extras import need
from tokenprune.evaluate.page import Figure, Page, Picture, Table

_NUMBER = re.compile(r"[+\-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+\-]?\d+)?")
_MISSING = {"", "-", "n/a", "nan"}


def render(page: Page) -> str:
    """The page as HTML with pictures, styles and script inside.

    Every text of the page is escaped. The file forbids itself to load anything (Content-Security-Policy), so a
    report can be opened and passed on without telling anybody.

    Args:
        page: the content.

    Raises:
        ImportError: says what to install when jinja2 is missing.

    Examples:
        >>> from tokenprune.evaluate.page import Section
        >>> text = render(Page(title="a < b", sections=[Section(title="empty")]))
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
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["figure"] = lambda block: isinstance(block, Figure)
    # The two files are this package's own, so they are put in as they are.
    text: str = environment.get_template("report.html").render(
        page=page,
        style=_source("report.css"),
        script=_source("report.js"),
        config=json.dumps(dict(page.config), indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )
    return text


def data_uri(picture: Picture) -> str:
    """The picture as a data URI.

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
    """The number that a cell begins with; None when it begins with none.

    Examples:
        >>> sort_key("+23.2 [21.0, 25.4]"), sort_key("28 (11.1%)"), sort_key("-"), sort_key("greedy")
        (23.2, 28.0, None, None)
    """
    found = _NUMBER.match(cell.strip())
    return None if found is None else float(found.group())


def numeric_columns(table: Table) -> list[bool]:
    """Per column: do all cells that are not missing begin with a number (and is there one)?

    Examples:
        >>> numeric_columns(Table(headers=["name", "n"], rows=[["a", "1 (2%)"], ["b", "-"]]))
        [False, True]
    """
    columns: list[list[str]] = [[row[place] for row in table.rows] for place in range(len(table.headers))]
    present = [[cell for cell in column if cell.strip().lower() not in _MISSING] for column in columns]
    return [bool(cells) and all(sort_key(cell) is not None for cell in cells) for cells in present]


def _source(name: str) -> Any:  # noqa: ANN401  (jinja2 wants str or None)
    return files("tokenprune.evaluate").joinpath("templates", name).read_text(encoding="utf-8")
