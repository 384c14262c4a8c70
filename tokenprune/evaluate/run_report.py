"""`report.html`: everything in a run folder on one page, made from its manifest."""

import csv
from pathlib import Path

from tokenprune.evaluate.galleries import read_gallery
from tokenprune.evaluate.html import render
from tokenprune.evaluate.manifest import MANIFEST, Item, Manifest, read_manifest
from tokenprune.evaluate.page import Card, Figure, Gallery, Page, Picture, Section, Slide, Table
from tokenprune.evaluate.run_folder import write_atomically

REPORT = "report.html"
LONGEST = 600
"""Rows of a CSV file that the page shows; the file has them all."""


def write_report(folder: Path) -> Path:
    """Write `report.html` from the folder's manifest; returns its path.

    Args:
        folder: a run folder of `tokenprune compare`, `analyze` or `gap`.

    Raises:
        ValueError: when the manifest or a file that it names cannot be read.
        ImportError: says what to install when jinja2 is missing.
    """
    manifest = read_manifest(folder)
    try:
        text = render(page_of(folder, manifest))
    except ValueError as error:
        raise ValueError(f"no report can be made of {folder / MANIFEST}: {error}") from error
    path = folder / REPORT
    write_atomically(path, text.encode())
    return path


def page_of(folder: Path, manifest: Manifest) -> Page:
    """The page of a run folder.

    Args:
        folder: where the files are.
        manifest: what they are.

    Raises:
        ValueError: when a file that it names cannot be read.
    """
    figures = [Figure(picture=_picture(folder, item), caption=item.note) for item in manifest.figures]
    summaries = [
        Table(title=one.title, headers=one.columns, rows=one.rows, note=one.note, strong=one.strong)
        for one in manifest.summaries
    ]
    galleries = [
        Gallery(slides=read_gallery(folder, item.file), title=item.title, note=item.note) for item in manifest.galleries
    ]
    if manifest.images:
        slides = [
            Slide(title=item.title, cards=[Card(title="", picture=_picture(folder, item), lines=[item.note])])
            for item in manifest.images
        ]
        galleries.append(Gallery(slides=slides))
    config = dict(manifest.configuration)
    versions, git = config.pop("versions", {}), config.pop("git", None)
    facts = {"What ran": manifest.kind, "Folder": folder.name}
    if git:
        facts["Commit"] = git["commit"] + (", with changes" if git["changed"] else "")
    tables = [_table(folder, item) for item in manifest.tables]
    sections = (
        Section(title="Results", blocks=summaries),
        Section(title="Figures", blocks=figures),
        Section(title="Samples", blocks=galleries),
        Section(title="All numbers", blocks=tables),
    )
    return Page(
        title=manifest.title,
        subtitle=manifest.conditions,
        findings=manifest.findings,
        sections=[section for section in sections if section.blocks],
        command=manifest.command,
        config=config,
        versions=versions,
        facts=facts,
    )


def _picture(folder: Path, item: Item) -> Picture:
    path = folder / item.file
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower(), path.suffix)
    try:
        return Picture(data=path.read_bytes(), alt=f"{item.title}. {item.note}".strip(), kind=kind)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}), which the manifest names; run again") from None


def _table(folder: Path, item: Item) -> Table:
    path = folder / item.file
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot read {path} ({error}), which the manifest names; run again") from None
    cut = f" The first {LONGEST} of {len(rows)} rows; the file has them all." if len(rows) > LONGEST else ""
    return Table(
        headers=header,
        rows=rows[:LONGEST],
        title=f"{item.title} ({item.file})",
        note=f"{item.note}{cut}".strip(),
    )
