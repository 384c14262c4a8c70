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
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        version = content.pop("manifest_version", None)
        if version != VERSION:
            raise ValueError(f"its version is {version!r}, this program reads {VERSION}")
        items = {name: tuple(Item(**item) for item in content[name]) for name in _LISTS}
        summaries = tuple(
            Summary(
                title=one["title"],
                columns=tuple(one["columns"]),
                rows=tuple(tuple(row) for row in one["rows"]),
                note=one["note"],
                strong=tuple(one["strong"]),
            )
            for one in content["summaries"]
        )
        content |= {"findings": tuple(content["findings"]), "summaries": summaries, **items}
        return Manifest(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read ({error}); run the command again") from None
