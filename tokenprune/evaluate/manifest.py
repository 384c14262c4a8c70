"""`manifest.json`: what a run folder holds, so that a report can be made of any run without knowing what ran."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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

MANIFEST = "manifest.json"
VERSION = 1
"""Raised whenever the manifest changes its form."""
_LISTS = ("tables", "figures", "images", "galleries")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of a run folder.

    Attributes:
        file: its name, relative to the folder.
        title: a headline.
        note: what one sees in it and how to read it; "" for nothing to say.
    """

    file: str
    title: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A table as people read it, numbers already rounded; the CSV files have all digits.

    Attributes:
        title: a headline.
        columns: names of the columns; line breaks are allowed.
        rows: texts, one per column.
        note: what the columns mean.
        strong: numbers of the rows that stand out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    strong: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run folder holds.

    Attributes:
        kind: what ran: "compare", "gap", "analyze alignment", ...
        title: a headline.
        command: a shell line that does the same again.
        configuration: everything that the numbers depend on, as plain JSON values.
        findings: what came out, in sentences with numbers.
        summaries: tables for people.
        tables: CSV files.
        figures: PNG files that belong beside the tables.
        images: PNG files to page through: samples, overlays.
        galleries: JSON files with slides, as `tokenprune.evaluate.galleries` writes them.
        conditions: under which the numbers were measured, in one line.
    """

    kind: str
    title: str
    command: str
    configuration: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    summaries: tuple[Summary, ...] = ()
    tables: tuple[Item, ...] = ()
    figures: tuple[Item, ...] = ()
    images: tuple[Item, ...] = ()
    galleries: tuple[Item, ...] = ()
    conditions: str = ""


def shell_line(arguments: Sequence[str]) -> str:
    """The command line of a subcommand, quoted for a shell.

    Examples:
        >>> shell_line(["analyze", "damage", "--strategy", "greedy_repmax(keep=64)"])
        "tokenprune analyze damage --strategy 'greedy_repmax(keep=64)'"
    """
    return shlex.join(["tokenprune", *arguments])


def csv_bytes(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as a CSV file, the header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, complete or not at all.

    Raises:
        ValueError: when it names a file that is not in the folder.
    """
    for item in (*manifest.tables, *manifest.figures, *manifest.images, *manifest.galleries):
        if not (folder / item.file).is_file():
            raise ValueError(f"write_manifest: {item.file} is not in {folder}; write the files first")
    content = {"manifest_version": VERSION, **asdict(manifest)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        ValueError: when there is none, it is damaged, or it was written by another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST}; give a folder that tokenprune compare, analyze or gap has written"
        )
    try:
        return _manifest(folder, read_json_object(file))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); run the command again") from None


def _manifest(folder: Path, content: dict[str, Any]) -> Manifest:
    """The manifest, every part checked for its kind and every file for lying in the folder."""
    version = content.pop("manifest_version", None)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"its version is {shorten(version)}, this program reads {VERSION}")
    fields: dict[str, Check] = dict.fromkeys(("kind", "title", "command", "conditions"), is_text)
    fields |= {"configuration": _is_configuration, "findings": list_of(is_text)}
    check_fields(content, fields | dict.fromkeys((*_LISTS, "summaries"), _is_list), where="the manifest")
    items = {name: tuple(_item(folder, entry, name) for entry in content[name]) for name in _LISTS}
    summaries = tuple(_summary(entry) for entry in content["summaries"])
    # Names that are not known are refused by the class.
    return Manifest(**{**content, **items, "findings": tuple(content["findings"]), "summaries": summaries})


def _item(folder: Path, entry: object, where: str) -> Item:
    found = check_fields(entry, dict.fromkeys(("file", "title", "note"), is_text), where=where)
    inside(folder, found["file"])
    return Item(**found)


def _summary(entry: object) -> Summary:
    fields: dict[str, Check] = {"title": is_text, "note": is_text, "columns": list_of(is_text)}
    fields |= {"rows": list_of(list_of(is_text)), "strong": list_of(is_count)}
    found = check_fields(entry, fields, where="summaries")
    if any(len(row) != len(found["columns"]) for row in found["rows"]):
        raise ValueError(f"summaries: {found['title']!r} has a row that does not fit its columns")
    rows = tuple(tuple(row) for row in found["rows"])
    return Summary(**{**found, "columns": tuple(found["columns"]), "rows": rows, "strong": tuple(found["strong"])})


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
