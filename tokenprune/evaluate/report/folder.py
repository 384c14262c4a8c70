"""A `Report` as a run folder, and back: CSV and PNG files, `manifest.json` that names them all, `report.html`."""

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.evaluate.report.html import png, render
from tokenprune.evaluate.report.report import Report, Shown, cell_text, frame, plain
from tokenprune.evaluate.report.slides import read_gallery, write_gallery
from tokenprune.evaluate.run_folder import write_atomically
from tokenprune.strict_json import (
    Check,
    check_fields,
    inside,
    is_count,
    is_text,
    list_of,
    read_json_object,
    shorten,
)

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
PAGE = "report.html"
VERSION = 1
"""Raised whenever the manifest changes its form."""
_LISTS = ("tables", "figures", "images", "galleries")
_NAMES = ("kind", "title", "command", "conditions")
_ENDS = {"tables": (".csv",), "figures": (".png",), "images": (".png", ".jpg", ".jpeg"), "galleries": (".json",)}


def shell_line(arguments: Sequence[str]) -> str:
    """The command line of a subcommand, quoted for a shell.

    Examples:
        >>> shell_line(["analyze", "damage", "--strategy", "greedy_repmax(keep=64)"])
        "tokenprune analyze damage --strategy 'greedy_repmax(keep=64)'"
    """
    return shlex.join(["tokenprune", *arguments])


def write(report: Report, folder: Path) -> Path:
    """Write the files of a report; see `Report.write`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: png(figure) for name, figure in report.figures.items()}
    contents = {f"{name}.csv": csv_bytes(table) for name, table in report.tables.items()}
    contents |= {f"{name}.png": data for name, data in drawn.items()}
    contents |= dict(report.images)
    for name, data in contents.items():
        write_atomically(inside(folder, name), data)
    galleries = {write_gallery(folder, name, slides): name for name, slides in report.galleries.items()}
    files = {
        "tables": [_item(report, f"{name}.csv") for name in report.tables],
        "figures": [_item(report, f"{name}.png") for name in report.figures],
        "images": [_item(report, name) for name in report.images],
        "galleries": [{**_item(report, name), "file": file} for file, name in galleries.items()],
    }
    shown = [
        {"title": one.title, "columns": one.columns, "rows": one.rows, "note": one.note, "strong": one.strong}
        for one in report.shown
    ]
    content = {
        "manifest_version": VERSION,
        **{name: getattr(report, name) for name in _NAMES},
        "configuration": plain(dict(report.configuration)),
        "findings": list(report.findings),
        "summaries": shown,
        **files,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    page = folder / PAGE
    write_atomically(page, render(report, folder=folder.name).encode())
    return page


def write_report(folder: Path) -> Path:
    """Write `report.html` again, from what the folder holds; returns its path.

    Args:
        folder: a run folder of `tokenprune compare`, `analyze` or `optimality`.

    Raises:
        ValueError: when the manifest or a file that it names cannot be read.
        ImportError: says what to install when jinja2 is missing.
    """
    page = folder / PAGE
    report = read_report(folder)
    try:
        text = render(report, folder=folder.name)
    except ValueError as error:
        raise ValueError(f"no report can be made of {folder / MANIFEST}: {error}") from error
    write_atomically(page, text.encode())
    return page


def read_report(folder: Path) -> Report:
    """Read the report of a run folder; the cells of its tables are texts, as the CSV files have them.

    Raises:
        ValueError: names the file that is missing or damaged, or that another version wrote.
    """
    content = read_manifest(folder)
    titles: dict[str, str] = {}
    notes: dict[str, str] = {}
    for kind in _LISTS:
        for entry in content[kind]:
            name = Path(entry["file"]).with_suffix("").as_posix() if kind == "galleries" else entry["file"]
            titles[name], notes[name] = entry["title"], entry["note"]
    names = {kind: [entry["file"] for entry in content[kind]] for kind in _LISTS}
    return Report(
        **{name: content[name] for name in _NAMES},
        configuration=content["configuration"],
        findings=tuple(content["findings"]),
        shown=content["summaries"],
        tables={file.removesuffix(".csv"): _table(folder / file) for file in names["tables"]},
        figures={file.removesuffix(".png"): _bytes(folder / file) for file in names["figures"]},
        images={file: _bytes(folder / file) for file in names["images"]},
        galleries={file.removesuffix(".json"): read_gallery(folder, file) for file in names["galleries"]},
        titles=titles,
        notes=notes,
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `manifest.json` of a run folder, every part checked; the files that it names are not opened.

    Raises:
        ValueError: when there is none, it is damaged, or it was written by another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST}; give a folder that tokenprune compare, analyze or optimality has written"
        )
    try:
        return _checked(folder, read_json_object(file))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); run the command again") from None


def csv_bytes(table: "pd.DataFrame") -> bytes:
    """Give a frame as a CSV file with all digits, the header first; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.itertuples(index=False, name=None):
        writer.writerow([cell_text(value) for value in row])
    return text.getvalue().encode()


def _checked(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Give the manifest, every part checked for its kind and every file for being in the folder."""
    version = content.pop("manifest_version", None)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"its version is {shorten(version)}, this program reads {VERSION}")
    fields: dict[str, Check] = dict.fromkeys(_NAMES, is_text)
    fields |= {"configuration": _is_configuration, "findings": list_of(is_text)}
    fields |= dict.fromkeys((*_LISTS, "summaries"), _is_list)
    check_fields(content, fields, where="the manifest")
    unknown = set(content) - set(fields)
    if unknown:
        raise ValueError(f"the manifest has an unknown part {shorten(min(unknown))}")
    for kind in _LISTS:
        for entry in content[kind]:
            _check_item(folder, entry, kind)
    return {**content, "summaries": tuple(_shown(entry) for entry in content["summaries"])}


def _item(report: Report, name: str) -> dict[str, str]:
    return {"file": name, "title": report.title_of(name), "note": report.notes.get(name, "")}


def _check_item(folder: Path, entry: object, kind: str) -> None:
    found = check_fields(entry, dict.fromkeys(("file", "title", "note"), is_text), where=kind)
    if set(found) != {"file", "title", "note"}:
        raise ValueError(f"{kind}: an entry has unknown parts")
    inside(folder, found["file"])
    if not found["file"].lower().endswith(_ENDS[kind]):
        raise ValueError(f"{kind}: {shorten(found['file'])} must end in {' or '.join(_ENDS[kind])}")


def _table(path: Path) -> "pd.DataFrame":
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot read {path} ({error}), which the manifest names; run again") from None
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"cannot read {path} (a row has {len(row)} cells for {len(header)} columns); run again")
    return frame(header, rows)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}), which the manifest names; run again") from None


def _shown(entry: object) -> Shown:
    fields: dict[str, Check] = {"title": is_text, "note": is_text, "columns": list_of(is_text)}
    fields |= {"rows": list_of(list_of(is_text)), "strong": list_of(is_count)}
    found = check_fields(entry, fields, where="summaries")
    rows = tuple(tuple(row) for row in found["rows"])
    return Shown(**{**found, "columns": tuple(found["columns"]), "rows": rows, "strong": tuple(found["strong"])})


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_configuration(value: Any) -> bool:  # noqa: ANN401
    """Whether it is an object whose versions and commit, which the report prints on their own, are what it expects."""
    if not isinstance(value, dict) or not isinstance(value.get("versions", {}), dict):
        return False
    git = value.get("git")
    return git is None or (
        isinstance(git, dict) and is_text(git.get("commit")) and isinstance(git.get("changed"), bool)
    )
