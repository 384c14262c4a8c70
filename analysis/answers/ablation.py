"""What each part of TrimTokenator is worth: the report of `run_ablation`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenprune.analysis.answers.ablation_run import AblationReport, run_ablation
from tokenprune.analysis.answers.variants import ablation_variants
from tokenprune.analysis.intervals import show
from tokenprune.analysis.measures import new_figure, styled, texts
from tokenprune.core.budget import Keep, show_budget
from tokenprune.evaluate.report import Report, Shown, frame
from tokenprune.evaluate.samples import Sample

if TYPE_CHECKING:
    import pandas as pd

    from tokenprune.evaluate.loading import LoadedModel
    from tokenprune.evaluate.run_loop import Progress
    from tokenprune.evaluate.statistics import Interval

_HEADERS = ("Variant", "kept", "accuracy", "minus reference", "p, Holm", "minus Random", "same as\ndense")
_COLUMNS = (
    *("factor", "label", "strategy", "reference", "positions", "pick_order", "seeds", "kept", "accuracy"),
    *("accuracy_low", "accuracy_high", "minus_reference", "minus_reference_low", "minus_reference_high"),
    *("p_reference", "p_reference_holm", "minus_random", "minus_random_low", "minus_random_high", "agreement"),
)


@styled
def ablation(
    model: "LoadedModel",
    samples: Sequence[Sample],
    *,
    keep: Sequence[Keep] = (0.111,),
    seeds: int = 3,
    exact_seconds: float = 0.5,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    fresh: bool = False,
    data: str = "samples",
    out: Path = Path("runs"),
    progress: "Progress | None" = None,
) -> Report:
    """Take TrimTokenator apart: each part left out, swapped or replaced, at one budget; resumes a stopped run.

    Args:
        model: with its processor.
        samples: the data set.
        keep: one budget: 64 tokens, 0.111 or 11.1%.
        seeds: random draws.
        exact_seconds: seconds per image for the exact solver; 0 leaves it out.
        batch_size: questions per batch.
        max_new_tokens: length limit of an answer.
        fresh: do finished cells again.
        data: what the data set is called in the report.
        out: folder that holds the run folders.
        progress: is given the progress.

    Raises:
        ValueError: for several budgets, and as `run_ablation`.
    """
    if len(keep) != 1:
        raise ValueError(f"--keep: ablation runs at one budget at a time, got {len(keep)}; call it once for each")
    report = run_ablation(
        model,
        samples,
        ablation_variants(keep[0], exact_seconds=exact_seconds),
        keep[0],
        data=data,
        out=out,
        seeds=tuple(range(seeds)),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        fresh=fresh,
        progress=progress,
    )
    figure = new_figure(9.5, 1.6 + 0.24 * (len(report.rows) + 9))
    report.plot(figure.subplots())
    stopped = f"Stopped: {report.finished} of {report.cells} cells are finished and kept; the same command goes on."
    return Report(
        title=f"What is each part of TrimTokenator worth at a budget of {show_budget(report.keep)}?",
        kind="analyze ablation",
        shown=[_shown(report)],
        tables={"ablation": _table(report)},
        figures={"ablation": figure},
        notes={
            "ablation.png": "Hollow: the setting that the others of its factor are compared with; orange: told apart "
            "from it (images exchanged, Holm within the factor, 5%)."
        },
        findings=[*report.findings, *(() if report.complete else (stopped,))],
        configuration={
            "images": report.rows[0].accuracy.units if report.rows else 0,
            "strategies": [row.variant.text for row in report.rows],
            "questions": report.samples,
            "keep": report.keep,
            "seeds": seeds,
            "exact_seconds": exact_seconds,
            "cells": {"finished": report.finished, "total": report.cells},
        },
        folder=report.folder,
        complete=report.complete,
    )


def _shown(report: AblationReport) -> Shown:
    body = [
        [
            f"{row.variant.factor}: {row.variant.label}" + (" (reference)" if row.variant.reference else ""),
            f"{row.kept:.0f}",
            show(row.accuracy, percent=True),
            _points(row.difference),
            "-" if row.p_corrected is None else f"{row.p_corrected:.2g}",
            _points(row.over_random),
            f"{100 * row.agreement:.0f}%",
        ]
        for row in report.rows
    ]
    return texts("Ablation", _HEADERS, body)


def _table(report: AblationReport) -> "pd.DataFrame":
    rows: list[Sequence[object]] = []
    if report.dense is not None:
        rows.append(("dense", "dense", *[None] * 4, 1, None, *_ends(report.dense), *[None] * 8, 1.0))
    for row in report.rows:
        variant = row.variant
        rows.append(
            (
                *(variant.factor, variant.label, variant.text, int(variant.reference), variant.positions or "default"),
                *(int(variant.pick_order), row.seeds, row.kept, *_ends(row.accuracy), *_ends(row.difference)),
                *(row.p_value, row.p_corrected, *_ends(row.over_random), row.agreement),
            )
        )
    return frame(_COLUMNS, rows)


def _points(difference: "Interval | None") -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _ends(interval: "Interval | None") -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
