"""What `tokenprune analyze gap` prints and draws."""

from collections.abc import Sequence

from tokenprune.analysis import GapAccuracyReport, analyse_gap
from tokenprune.analysis.intervals import show
from tokenprune.cli.answer_analyses import Request
from tokenprune.cli.outcome import Outcome, Table, new_figure, numbers
from tokenprune.evaluate.methods import show_budget


def gap(request: Request) -> Outcome:
    """Objective against answers, one report per budget."""
    args = request.args
    if request.strategies:
        raise ValueError(
            "--strategy: gap compares optimisers of one objective; leave it out and choose budgets by --keep"
        )
    if args.exact_seconds == 0:
        raise ValueError("--exact-seconds must be more than 0 for gap: the solver proves the bound")
    reports = [
        analyse_gap(
            request.loaded,
            request.samples,
            keep,
            draws=args.seeds,
            time_limit=args.exact_seconds,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            watch=request.watch,
        )
        for keep in args.keep
    ]
    tables: list[Table] = []
    header = ("keep", "set", "measure", "value", "low", "high", "images")
    rows: list[Sequence[object]] = [header]
    samples: list[Sequence[object]] = [
        ("keep", "sample", "set", "value", "bound", "normalised_gap", "correct", "divergence")
    ]
    for report in reports:
        budget = show_budget(report.keep)
        tables.append((f"Sets of {budget} of the tokens ({report.distance})", _HEADERS, _body(report)))
        for name in report.names:
            found = {"gap": report.gap[name], "accuracy": report.accuracy[name], "divergence": report.divergence[name]}
            if name in report.against_greedy:
                found["accuracy_minus_greedy"] = report.against_greedy[name]
                found["divergence_minus_greedy"] = report.nearer_than_greedy[name]
            rows.extend((budget, name, measure, *numbers(mean)) for measure, mean in found.items())
            if name in report.p_corrected:
                rows.append((budget, name, "p_greedy_holm", f"{report.p_corrected[name]:.6g}", "", "", ""))
        for name in ("path", "path_divergence", "near", "near_divergence"):
            rows.append((budget, "correlation within images", name, *numbers(getattr(report, name))))
        rows.append((budget, "exact", "proved", f"{report.proved:.6g}", "", "", ""))
        samples.extend(
            (budget, sample, name, f"{value:.9g}", f"{bound:.9g}", f"{gap:.6g}", int(right), f"{apart:.6g}")
            for sample, name, value, bound, gap, right, apart in report.rows
        )
    figure = new_figure(13.5, 3.4 * len(reports))
    for line, report in zip(figure.subplots(len(reports), 2, squeeze=False), reports, strict=True):
        report.plot(line[0])
        report.plot(line[1], measure="divergence")
    return Outcome(
        title="Does a better value of the RepMax objective buy accuracy?",
        tables=tables,
        files={"gap_accuracy.csv": rows, "gap_samples.csv": samples},
        figures={"gap_accuracy.png": figure},
        notes={
            "gap_accuracy.png": "Sets of equal size: grey, greedy with a part of its picks replaced by random tokens; "
            "blue, optimisers of the same objective. Gap: 0 at the proved bound, 100% at a random set's expectation.",
            "gap_samples.csv": "Every set of every sample.",
        },
        images=reports[0].accuracy["greedy"].units,
        findings=[text for report in reports for text in report.explanation],
        strategies=list(reports[0].names),
        facts={
            "questions": len(request.samples),
            "budgets": [report.keep for report in reports],
            "distance": reports[0].distance,
            "draws": args.seeds,
            "exact_seconds": args.exact_seconds,
        },
    )


_HEADERS = ("Set", "normalised gap", "accuracy", "minus greedy", "p, Holm", "KL from dense, nats")


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
