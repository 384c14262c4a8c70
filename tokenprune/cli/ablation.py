"""What `tokenprune analyze ablation` prints and draws."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenprune.analysis import AblationReport, ablation_variants, run_ablation
from tokenprune.analysis.intervals import show
from tokenprune.cli.answer_analyses import Request
from tokenprune.cli.outcome import Outcome, new_figure
from tokenprune.cli.progress import Bar
from tokenprune.evaluate.methods import show_budget

if TYPE_CHECKING:
    from tokenprune.evaluate.statistics import Interval


def ablation(request: Request) -> Outcome:
    """Every part of TrimTokenator left out, swapped or replaced; goes on where a stopped run was."""
    args = request.args
    if request.strategies:
        raise ValueError(
            "--strategy: ablation has its own list of variants; leave it out, or call tokenprune.analysis.run_ablation"
        )
    if len(args.keep) > 1:
        raise ValueError(f"--keep: ablation runs at one budget at a time, got {len(args.keep)}; call it once for each")
    variants = ablation_variants(args.keep[0], exact_seconds=args.exact_seconds)
    with Bar() as bar:
        report = run_ablation(
            request.loaded,
            request.samples,
            variants,
            args.keep[0],
            data=args.data or "bundled scenes",
            out=args.out.expanduser(),
            seeds=tuple(range(args.seeds)),
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            fresh=args.fresh,
            progress=bar,
        )
    return _outcome(report, request)


def _outcome(report: AblationReport, request: Request) -> Outcome:
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
    headers = ("Variant", "kept", "accuracy", "minus reference", "p, Holm", "minus Random", "same as\ndense")
    header = ["factor", "label", "strategy", "reference", "positions", "pick_order", "seeds", "kept", "accuracy"]
    header += ["accuracy_low", "accuracy_high", "minus_reference", "minus_reference_low", "minus_reference_high"]
    header += ["p_reference", "p_reference_holm", "minus_random", "minus_random_low", "minus_random_high", "agreement"]
    rows: list[Sequence[object]] = [header]
    if report.dense is not None:
        dense = ("dense", "dense", "", "", "", "", 1, "", *_ends(report.dense), *[""] * 8, 1)
        rows.append(dense)
    for row in report.rows:
        variant = row.variant
        rows.append(
            (
                *(variant.factor, variant.label, variant.text, int(variant.reference), variant.positions or "default"),
                *(int(variant.pick_order), row.seeds, f"{row.kept:.6g}", *_ends(row.accuracy), *_ends(row.difference)),
                *("" if p is None else f"{p:.6g}" for p in (row.p_value, row.p_corrected)),
                *_ends(row.over_random),
                f"{row.agreement:.6g}",
            )
        )
    figure = new_figure(9.5, 1.6 + 0.24 * (len(report.rows) + 9))
    report.plot(figure.subplots())
    units = report.rows[0].accuracy.units if report.rows else 0
    stopped = f"Stopped: {report.finished} of {report.cells} cells are finished and kept; the same command goes on."
    return Outcome(
        title=f"What is each part of TrimTokenator worth at a budget of {show_budget(report.keep)}?",
        tables=[("Ablation", headers, body)],
        files={"ablation.csv": rows},
        figures={"ablation.png": figure},
        notes={
            "ablation.png": "Hollow: the setting that the others of its factor are compared with; orange: told apart "
            "from it (images exchanged, Holm within the factor, 5%)."
        },
        images=units,
        findings=[*report.findings, *(() if report.complete else (stopped,))],
        strategies=[row.variant.text for row in report.rows],
        facts={
            "questions": report.samples,
            "keep": report.keep,
            "seeds": request.args.seeds,
            "exact_seconds": request.args.exact_seconds,
            "cells": {"finished": report.finished, "total": report.cells},
        },
        folder=report.folder,
        complete=report.complete,
    )


def _points(difference: "Interval | None") -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _ends(interval: "Interval | None") -> tuple[str, str, str]:
    if interval is None:
        return ("", "", "")
    return (f"{interval.value:.6g}", f"{interval.low:.6g}", f"{interval.high:.6g}")
