"""The main job: run every cell that is not finished yet, then write tables and figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tokenprune.evaluate.batches import resampling_units
from tokenprune.evaluate.cell_files import read_cells, read_sessions, read_vision
from tokenprune.evaluate.cells import Cell, on_layer_average
from tokenprune.evaluate.environment import load_average
from tokenprune.evaluate.export import export
from tokenprune.evaluate.extras import EVAL_PACKAGES, need
from tokenprune.evaluate.figures import accuracy_figure
from tokenprune.evaluate.galleries import write_gallery
from tokenprune.evaluate.kept_tokens import kept_slides, kept_tokens_figure
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.manifest import Item, Manifest, write_manifest
from tokenprune.evaluate.report import footer, run_report
from tokenprune.evaluate.result_table import findings, kinds_summary, results_summary
from tokenprune.evaluate.run_folder import RunFolder, write_atomically
from tokenprune.evaluate.run_report import write_report
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample, check_samples
from tokenprune.evaluate.settings import Settings, configuration
from tokenprune.evaluate.summary import Row, summarise


class Progress(Protocol):
    """What `compare` tells about its progress; both calls are cheap."""

    def start(self, total: float, done: float) -> None:
        """The work is `total` units, of which `done` are left from an earlier run."""

    def advance(self, amount: float, what: str) -> None:
        """`amount` units of `what` are done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, total: float, done: float) -> None:
        """Say nothing."""

    def advance(self, amount: float, what: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison, finished or stopped.

    Attributes:
        folder: where everything is.
        rows: the results table.
        report: the content of run.json.
        footer: the conditions in one line, as figures print them.
        reused: cells that an earlier run had finished.
        finished: cells that are finished now.
        cells: cells in all.
    """

    folder: Path
    rows: tuple[Row, ...]
    report: Mapping[str, Any]
    footer: str
    reused: int
    finished: int
    cells: int

    @property
    def complete(self) -> bool:
        """False when the run was stopped."""
        return self.finished == self.cells


def compare(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    settings: Settings,
    *,
    data: str,
    out: Path,
    fresh: bool = False,
    figures: bool = True,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Compare strategies at several budgets on one model and data set; resumes a stopped run of the same configuration.

    A cell is written when it is finished, as a whole. On Ctrl-C (KeyboardInterrupt) the tables and figures are made
    from the cells that are there.

    Args:
        loaded: the model and its processor.
        samples: the data set.
        settings: what to compare.
        data: what the data set is called in reports.
        out: folder that holds the run folders.
        fresh: do finished cells again.
        figures: draw them.
        progress: is told about the progress.
        command: a shell line that does the same again, for the manifest.

    Raises:
        ValueError: before any work, when a strategy does not fit the model, the samples are not sound, the run folder
            cannot be written, a file in it is damaged, or another process is at work in it.
        ImportError: before any work, when a package of the `eval` extra is missing.
    """
    for package in EVAL_PACKAGES:
        need(package)
    check_samples(samples, source=data)
    cells = settings.cells
    runner = Runner(
        loaded, samples, settings.batch_size, max_new_tokens=settings.max_new_tokens, positions=settings.positions
    )
    tokens = runner.check([cell.strategy for cell in cells if cell.strategy is not None])
    if settings.budget == "layer-average":
        cells = tuple(on_layer_average(cells, n=tokens, layers=len(runner.adapter.decoder_layers)))
    config = configuration(settings, loaded, data, samples)
    model_name, data_name = Path(loaded.name).name, Path(data).name
    name = _slug(data_name if data_name.startswith(model_name) else f"{model_name}-{data_name}")
    need_bytes = _expected_bytes(len(cells), samples)
    with RunFolder.open(out, name, config, fresh=fresh, need_bytes=need_bytes) as folder:
        return _compare(folder, runner, cells, config, figures=figures, progress=progress or Silent(), command=command)


def _compare(
    folder: RunFolder,
    runner: Runner,
    cells: Sequence[Cell],
    config: Mapping[str, Any],
    *,
    figures: bool,
    progress: Progress,
    command: str,
) -> Comparison:
    """Run what is missing and write tables, figures and the report; nobody else is at work in the folder."""
    samples = runner.samples
    reused = len(read_cells(folder, [cell.id for cell in cells], samples))  # damaged ones are found before any work
    read_vision(folder)
    sessions = read_sessions(folder)
    started = _now()
    with suppress(KeyboardInterrupt):  # the finished cells are on disk; report what there is
        _run_missing(runner, folder, cells, progress)
    contents = read_cells(folder, [cell.id for cell in cells], samples)
    vision = read_vision(folder)
    rows = summarise(cells, contents, samples, resampling_units(samples, runner.names), vision)
    session = {"started": started, "ended": _now(), "cells_run": len(contents) - reused, "load_average": load_average()}
    report = run_report(config, cells, contents, rows, samples, sessions=[*sessions, session])
    folder.write_json("run.json", report)
    export(folder, cells, contents, samples, rows, config)
    line = footer(report)
    if figures and any(not row.is_dense for row in rows):
        write_atomically(folder.path / "accuracy_vs_tokens.png", accuracy_figure(rows, footer=line))
        picture = kept_tokens_figure(runner, cells, contents, footer=line)
        if picture is not None:
            write_atomically(folder.path / "kept_tokens.png", picture)
            write_gallery(folder.path, "kept_tokens", kept_slides(runner, cells, contents))
    write_manifest(folder.path, _manifest(folder.path, rows, report, line, command))
    write_report(folder.path)
    return Comparison(
        folder=folder.path,
        rows=tuple(rows),
        report=report,
        footer=line,
        reused=reused,
        finished=len(contents),
        cells=len(cells),
    )


def _run_missing(runner: Runner, folder: RunFolder, cells: Sequence[Cell], progress: Progress) -> None:
    missing = [cell for cell in cells if not folder.has_cell(cell.id)]
    batches = -(-len(runner.samples) // runner.batch_size)
    per_cell = {cell.id: _work(cell) * batches for cell in cells}
    # Reading and encoding the pictures costs about as much as a dense cell.
    done = sum(per_cell.values()) - sum(per_cell[cell.id] for cell in missing)
    if not missing:
        return
    progress.start(sum(per_cell.values()) + batches, done)
    runner.prepare(_told(progress, 1.0, "encoding pictures"))
    if not folder.read_json("vision.json"):
        folder.write_json("vision.json", {"batches": runner.vision_times})
    runner.run_batch(
        runner.batches[0], missing[0].strategy
    )  # the first call of a process allocates and chooses kernels
    for cell in missing:
        folder.write_cell(cell.id, runner.run(cell, _told(progress, _work(cell), cell.method)))


def _manifest(folder: Path, rows: Sequence[Row], report: Mapping[str, Any], line: str, command: str) -> Manifest:
    """What the folder holds; figures that were not drawn are left out."""
    config = report["config"]
    pictures = (
        Item(
            file="accuracy_vs_tokens.png",
            title="Accuracy against visual tokens kept",
            note="Left: accuracy; the band is the dense model's 95% interval. Right: paired difference to Random.",
        ),
    )
    galleries = (
        Item(
            file="kept_tokens.json",
            title="Kept tokens and answers",
            note="Questions that the dense model answers right, of each kind first; dots: tokens pooled, none dropped; "
            "random: its first seed. What was dropped is faded.",
        ),
    )
    return Manifest(
        kind="compare",
        title=f"Comparison on {config['data']['name']}",
        command=command,
        configuration={**config, "versions": report["versions"], "git": report["git"]},
        findings=findings(rows),
        summaries=(results_summary(rows, metric=f"{config['metric']} v{config['metric_version']}"), kinds_summary(rows))
        if rows
        else (),
        tables=(Item(file="results.csv", title="Results, all digits", note="Shares from 0 to 1; milliseconds."),),
        figures=tuple(item for item in pictures if (folder / item.file).is_file()),
        galleries=tuple(item for item in galleries if (folder / item.file).is_file()),
        conditions=line,
    )


def _told(progress: Progress, amount: float, what: str) -> Callable[..., None]:
    return lambda *_: progress.advance(amount, what)


def _work(cell: Cell) -> float:
    """Cost of a cell's batch relative to dense, for the remaining time: text and overhead stay whatever is kept."""
    share = 1.0 if cell.keep is None else min(1.0, cell.keep if isinstance(cell.keep, float) else cell.keep / 576)
    return 0.2 + 0.8 * share


def _expected_bytes(cells: int, samples: Sequence[Sample]) -> int:
    # Kept indices dominate: up to 576 numbers of 4 characters per image, twice (cells and tables), and the figures.
    return cells * sum(len(sample.images) for sample in samples) * 2400 + 16 * 2**20


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:48] or "run"
