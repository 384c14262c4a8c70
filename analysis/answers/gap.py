"""Does a better value of the RepMax objective buy accuracy? The report of `analyse_gap`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenprune.analysis.answers.gap_accuracy import GapAccuracyReport, analyse_gap
from tokenprune.analysis.intervals import show
from tokenprune.analysis.measures import Watch, new_figure, numbers, styled, texts
from tokenprune.core.budget import Keep, show_budget
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.samples import Sample

if TYPE_CHECKING:
    from tokenprune.evaluate.loading import LoadedModel

_HEADERS = ("Set", "normalised gap", "accuracy", "minus greedy", "p, Holm", "KL from dense, nats")


@styled
def gap(
    model: "LoadedModel",
    samples: Sequence[Sample],
    *,
    keep: Sequence[Keep] = (0.222, 0.111),
    seeds: int = 3,
    exact_seconds: float = 0.5,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    watch: Watch = iter,
) -> Report:
    """Does a better value of the RepMax objective buy accuracy? Sets from random to proved optimum.

    Args:
        model: with its processor.
        samples: the data set.
        keep: budgets: 64 tokens, 0.111 or 11.1%.
        seeds: random draws.
        exact_seconds: seconds per image for the exact solver.
        batch_size: questions per batch.
        max_new_tokens: length limit of an answer.
        watch: wraps the batches, for a progress bar.

    Raises:
        ValueError: without time for the exact solver, which proves the bound.
    """
    if exact_seconds == 0:
        raise ValueError("--exact-seconds must be more than 0 for gap: the solver proves the bound")
    reports = [
        analyse_gap(
            model,
            samples,
            budget,
            draws=seeds,
            time_limit=exact_seconds,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            watch=watch,
        )
        for budget in keep
    ]
    shown, rows, parts = [], [], []
    for report in reports:
        shown.append(
            texts(f"Sets of {show_budget(report.keep)} of the tokens ({report.distance})", _HEADERS, _body(report))
        )
        rows += _measures(report)
        parts += [
            (show_budget(report.keep), one, name, value, bound, normalised, int(right), apart)
            for one, name, value, bound, normalised, right, apart in report.rows
        ]
    figure = new_figure(13.5, 3.4 * len(reports))
    for line, report in zip(figure.subplots(len(reports), 2, squeeze=False), reports, strict=True):
        report.plot(line[0])
        report.plot(line[1], measure="divergence")
    return Report(
        title="Does a better value of the RepMax objective buy accuracy?",
        kind="analyze gap",
        shown=shown,
        tables={
            "gap_accuracy": frame(("keep", "set", "measure", "value", "low", "high", "images"), rows),
            "gap_samples": frame(
                ("keep", "sample", "set", "value", "bound", "normalised_gap", "correct", "divergence"), parts
            ),
        },
        figures={"gap_accuracy": figure},
        notes={
            "gap_accuracy.png": "Sets of equal size: grey, greedy with a part of its picks replaced by random tokens; "
            "blue, optimisers of the same objective. Gap: 0 at the proved bound, 100% at a random set's expectation.",
            "gap_samples.csv": "Every set of every sample.",
        },
        findings=[text for report in reports for text in report.explanation],
        configuration={
            "images": reports[0].accuracy["greedy"].units,
            "strategies": list(reports[0].names),
            "questions": len(samples),
            "budgets": [report.keep for report in reports],
            "distance": reports[0].distance,
            "draws": seeds,
            "exact_seconds": exact_seconds,
        },
    )


def _measures(report: GapAccuracyReport) -> list[tuple[object, ...]]:
    """Give one row per set and measure."""
    rows: list[tuple[object, ...]] = []
    budget = show_budget(report.keep)
    for name in report.names:
        found = {"gap": report.gap[name], "accuracy": report.accuracy[name], "divergence": report.divergence[name]}
        if name in report.against_greedy:
            found["accuracy_minus_greedy"] = report.against_greedy[name]
            found["divergence_minus_greedy"] = report.nearer_than_greedy[name]
        rows.extend((budget, name, measure, *numbers(mean)) for measure, mean in found.items())
        if name in report.p_corrected:
            rows.append((budget, name, "p_greedy_holm", report.p_corrected[name], None, None, None))
    for name in ("path", "path_divergence", "near", "near_divergence"):
        rows.append((budget, "correlation within images", name, *numbers(getattr(report, name))))
    rows.append((budget, "exact", "proved", report.proved, None, None, None))
    return rows


def _body(report: GapAccuracyReport) -> list[list[str]]:
    body = []
    for name in report.names:
        against = report.against_greedy.get(name)
        difference = (
            "-"
            if against is None
            else f"{100 * against.value:+.1f} [{100 * against.low:+.1f}, {100 * against.high:+.1f}]"
        )
        p_value = "-" if name not in report.p_corrected else f"{report.p_corrected[name]:.2g}"
        gap = f"{100 * report.gap[name].value:.3g}%"
        body.append([name, gap, show(report.accuracy[name], percent=True), difference, p_value])
        body[-1].append(show(report.divergence[name]))
    return body
