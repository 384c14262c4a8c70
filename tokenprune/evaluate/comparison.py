"""The main job: run every cell that is not finished yet, then write tables and figures."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.core.budget import Keep
from tokenprune.core.places import Positions
from tokenprune.evaluate.batches import resampling_units
from tokenprune.evaluate.cell_files import read_cells, read_sessions, read_vision
from tokenprune.evaluate.cells import Cell, on_layer_average
from tokenprune.evaluate.conditions import footer, run_report
from tokenprune.evaluate.environment import load_average
from tokenprune.evaluate.export import export, results_frame
from tokenprune.evaluate.extras import EVAL_PACKAGES, need
from tokenprune.evaluate.figures import accuracy_figure
from tokenprune.evaluate.kept_tokens import kept_slides, kept_tokens_figure
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.methods import DEFAULT_METHODS, Method
from tokenprune.evaluate.report import Report
from tokenprune.evaluate.report.slides import Slide
from tokenprune.evaluate.result_table import findings, kinds_summary, results_summary
from tokenprune.evaluate.run_folder import RunFolder, slug, write_atomically
from tokenprune.evaluate.run_loop import Progress, Silent, run_missing
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample, check_samples
from tokenprune.evaluate.settings import Settings, configuration
from tokenprune.evaluate.summary import Row, summarise

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison, finished or stopped.

    Attributes:
        folder: where everything is.
        rows: the results table.
        report: the same for people and programs.
        facts: the content of run.json.
        footer: the conditions in one line, as figures print them.
        reused: cells that an earlier run had finished.
        finished: cells that are finished now.
        cells: cells in all.
    """

    folder: Path
    rows: tuple[Row, ...]
    report: Report
    facts: Mapping[str, Any]
    footer: str
    reused: int
    finished: int
    cells: int

    @property
    def table(self) -> "pd.DataFrame":
        """The results with all digits: one row per method and budget, the columns of results.csv."""
        return self.report.tables["results"]

    @property
    def complete(self) -> bool:
        """False when the run was stopped."""
        return self.finished == self.cells


def compare(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    methods: Settings | Sequence[str] = DEFAULT_METHODS,
    *,
    budgets: Sequence[Keep] | None = None,
    seeds: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    positions: Positions | None = None,
    data: str = "samples",
    out: Path = Path("runs"),
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
        methods: strategies as text, without their budgets; the controls are always there. `Settings` say the same and
            all of the following, which must then be left out.
        budgets: tokens (int) or shares of the image's tokens (float).
        seeds: how many, for methods that draw at random.
        batch_size: samples per batch.
        max_new_tokens: length limit of an answer.
        positions: "original" or "compact"; None for what each strategy's authors do.
        data: what the data set is called in reports.
        out: folder that holds the run folders.
        fresh: do finished cells again.
        figures: draw them.
        progress: is given the progress.
        command: a shell line that does the same again, for the manifest.

    Raises:
        ValueError: before any work, when a strategy does not fit the model, the samples are not sound, the run folder
            cannot be written, a file in it is damaged, or another process is at work in it.
        ImportError: before any work, when a package of the `eval` extra is missing.
    """
    chosen = {"budgets": budgets, "seeds": seeds, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    settings = _settings(methods, {**chosen, "positions": positions})
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
    name = slug(data_name if data_name.startswith(model_name) else f"{model_name}-{data_name}")
    need_bytes = _expected_bytes(len(cells), samples)
    with RunFolder.open(out, name, config, fresh=fresh, need_bytes=need_bytes) as folder:
        return _compare(folder, runner, cells, config, figures=figures, progress=progress or Silent(), command=command)


def _settings(methods: Settings | Sequence[str], chosen: Mapping[str, Any]) -> Settings:
    """Give the settings of a comparison; what is None is left to their defaults."""
    given = {name: value for name, value in chosen.items() if value is not None}
    if isinstance(methods, Settings):
        if given:
            raise ValueError(f"compare: {min(given)} is part of Settings; give it there, or give methods as texts")
        return methods
    if isinstance(methods, str):
        raise TypeError(f"compare: methods must be a list of texts, got the text {methods!r}; put it into a list")
    if "seeds" in given:
        given["seeds"] = tuple(range(given["seeds"]))
    if "budgets" in given:
        given["budgets"] = tuple(given["budgets"])
    return Settings(methods=tuple(Method(text) for text in methods), **given)


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
    with suppress(KeyboardInterrupt):  # the finished cells are on disk and are reported
        run_missing(runner, folder, cells, progress)
    contents = read_cells(folder, [cell.id for cell in cells], samples)
    vision = read_vision(folder)
    rows = summarise(cells, contents, samples, resampling_units(samples, runner.names), vision)
    session = {"started": started, "ended": _now(), "cells_run": len(contents) - reused, "load_average": load_average()}
    facts = run_report(config, cells, contents, rows, samples, sessions=[*sessions, session])
    folder.write_json("run.json", facts)
    export(folder, cells, contents, samples)
    line = footer(facts)
    drawn: dict[str, bytes] = {}
    slides: dict[str, Sequence[Slide]] = {}
    if figures and any(not row.is_dense for row in rows):
        drawn["accuracy_vs_tokens"] = accuracy_figure(rows, footer=line)
        picture = kept_tokens_figure(runner, cells, contents, footer=line)
        if picture is not None:
            slides["kept_tokens"] = kept_slides(runner, cells, contents)
            write_atomically(folder.path / "kept_tokens.png", picture)
    report = replace(_report(rows, facts, line), figures=drawn, galleries=slides, command=command, folder=folder.path)
    report = replace(report, complete=len(contents) == len(cells))
    report.write(folder.path)
    return Comparison(
        folder=folder.path,
        rows=tuple(rows),
        report=report,
        facts=facts,
        footer=line,
        reused=reused,
        finished=len(contents),
        cells=len(cells),
    )


def _report(rows: Sequence[Row], facts: Mapping[str, Any], line: str) -> Report:
    """Give the report without its pictures."""
    config = facts["config"]
    metric = f"{config['metric']} v{config['metric_version']}"
    return Report(
        kind="compare",
        title=f"Comparison on {config['data']['name']}",
        findings=findings(rows),
        shown=(results_summary(rows, metric=metric), kinds_summary(rows)) if rows else (),
        tables={"results": results_frame(rows, config)},
        titles={
            "results.csv": "Results, all digits",
            "accuracy_vs_tokens.png": "Accuracy against visual tokens kept",
            "kept_tokens": "Kept tokens and answers",
        },
        notes={
            "results.csv": "Shares from 0 to 1; milliseconds.",
            "accuracy_vs_tokens.png": "Left: accuracy; the band is the dense model's 95% interval. Right: paired "
            "difference to Random.",
            "kept_tokens": "Questions that the dense model answers right, of each kind first; dots: tokens pooled, "
            "none dropped; random: its first seed. What was dropped is faded.",
        },
        configuration={**config, "versions": facts["versions"], "git": facts["git"]},
        conditions=line,
    )


def _expected_bytes(cells: int, samples: Sequence[Sample]) -> int:
    # Kept indices dominate: up to 576 numbers of 4 characters per image, twice (cells and tables), and the figures.
    return cells * sum(len(sample.images) for sample in samples) * 2400 + 16 * 2**20


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
