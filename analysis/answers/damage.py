"""What pruning does to single answers: the report of `analyse_damage` and, for a second question, `analyse_turns`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenprune.analysis.answers.damage_measures import DamageReport, analyse_damage
from tokenprune.analysis.answers.seeds import over_seeds, questions_about_the_same
from tokenprune.analysis.answers.turns import TurnsReport, analyse_turns
from tokenprune.analysis.measures import COLOURS, Watch, long_table, means_table, new_figure, styled
from tokenprune.baselines import GridPool
from tokenprune.core.places import InDecoder
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.report import Report, frame
from tokenprune.evaluate.samples import Sample

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tokenprune.evaluate.loading import LoadedModel

SECOND = (
    "greedy_repmax",
    "trim_tokenator",
    "mi_alignment",
    "mi_alignment(metric='cosine', reduce='max', text='question')",
)
"""Strategies whose tokens are also shown to a second question."""
SINGLE = ("random", "uniform_grid", "grid_pool", "mi_alignment", "greedy_repmax", "trim_tokenator", "divprune")
"""Strategies that are judged when none are given."""
_COLUMNS = {
    "accuracy": ("accuracy", True),
    "difference": ("minus\ndense", True),
    "right_to_wrong": ("right to\nwrong", True),
    "wrong_to_right": ("wrong to\nright", True),
    "agreement": ("same answer", True),
    "divergence": ("KL at first\ntoken, nats", False),
    "ece": ("ECE", False),
    "brier": ("Brier", False),
    "hard": ("accuracy,\nhard", True),
    "easy": ("accuracy,\neasy", True),
}


@styled
def damage(
    model: "LoadedModel",
    samples: Sequence[Sample],
    strategies: Sequence[PruningStrategy] = (),
    *,
    seeds: int = 3,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    second: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    watch: Watch = iter,
) -> Report:
    """Count flips, and measure probabilities, calibration, hard and easy samples, a second question.

    Args:
        model: with its processor.
        samples: the data set.
        strategies: with their budgets; the controls and a few methods when there are none.
        seeds: random draws of strategies that draw.
        batch_size: questions per batch.
        max_new_tokens: length limit of an answer.
        second: by sample id, another question about the same picture with its answers; None for those of the data set.
        watch: wraps the batches, for a progress bar.
    """
    used = list(strategies) or [parse(name, keep=0.111) for name in SINGLE]
    pooled = GridPool(getattr(used[0], "keep", 0.111))
    by_label = {repr(strategy): over_seeds(strategy, seeds) for strategy in used}
    reports = analyse_damage(
        model, samples, by_label, pooled=pooled, batch_size=batch_size, max_new_tokens=max_new_tokens, watch=watch
    )
    turns: tuple[TurnsReport, ...] = ()
    others = questions_about_the_same(samples) if second is None else second
    asked_twice = [sample for sample in samples if sample.id in others]
    if asked_twice:
        own = [strategy for strategy in strategies if not isinstance(strategy.place, InDecoder)]
        chosen = own if strategies else [parse(text, keep=0.111) for text in SECOND]
        if chosen:
            turns = analyse_turns(
                model, asked_twice, others, chosen, batch_size=batch_size, max_new_tokens=max_new_tokens, watch=watch
            )
    configuration = {"questions": len(samples), "split": repr(pooled), "seeds": seeds}
    report = _report(reports, pooled, configuration)
    return _with_turns(report, turns) if turns else report


def _report(reports: Sequence[DamageReport], pooled: PruningStrategy, configuration: Mapping[str, Any]) -> Report:
    names, means = [report.label for report in reports], [report.means for report in reports]
    return Report(
        title="What does pruning do to single answers?",
        kind="analyze damage",
        shown=[means_table("Damage to answers", names, means, _COLUMNS, more=_p_values(reports))],
        tables={"damage": long_table(names, means), "tests": _tests(reports), "calibration": _calibration(reports)},
        figures={"damage": _figure(reports)},
        notes={
            "damage.png": f"Hard: dense right, {pooled!r} wrong, so pooling fails on all of them by construction. "
            "Calibration: ten bins of equal width.",
            "tests.csv": "Against dense: images exchanged, Holm over the strategies; McNemar for single runs.",
        },
        findings=[report.explanation for report in reports[1:]],
        configuration={"images": reports[0].means["accuracy"].units, "strategies": names[1:], **configuration},
    )


def _p_values(reports: Sequence[DamageReport]) -> dict[str, list[str]]:
    return {
        "p": [f"{r.p_value:.2g}" for r in reports],
        "p,\nHolm": [f"{r.p_corrected:.2g}" for r in reports],
        "p,\nMcNemar": ["-" if r.mcnemar is None else f"{r.mcnemar.p_value:.2g}" for r in reports],
    }


def _tests(reports: Sequence[DamageReport]) -> "pd.DataFrame":
    columns = ("strategy", "p_dense", "p_dense_holm", "p_mcnemar", "only_strategy_right", "only_dense_right")
    rows = [
        (r.label, r.p_value, r.p_corrected)
        + ((None, None, None) if (m := r.mcnemar) is None else (m.p_value, m.only_first, m.only_second))
        for r in reports
    ]
    return frame(columns, rows)


def _calibration(reports: Sequence[DamageReport]) -> "pd.DataFrame":
    rows = [
        (r.label, i, int(c.counts[i]), float(c.confidence[i]), float(c.accuracy[i]))
        for r in reports
        for c in (r.calibration,)
        for i in range(len(c.counts))
        if c.counts[i]
    ]
    return frame(("strategy", "bin", "answers", "confidence", "accuracy"), rows)


def _figure(reports: Sequence[DamageReport]) -> "Figure":
    figure = new_figure(13.5, 4.4 + 0.12 * len(reports))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for place, report in enumerate(reports):
        offset = 0.8 * (place / len(reports) - 0.5 + 0.5 / len(reports))
        colour = "#000000" if place == 0 else COLOURS[(place - 1) % len(COLOURS)]
        report.plot(left, colour=colour, offset=offset)
        report.calibration.plot(right, label=report.label, colour=colour)
    left.set_title("Damaged answers", loc="left")
    right.set_title("Calibration", loc="left")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=7)
    return figure


def _with_turns(report: Report, turns: Sequence[TurnsReport]) -> Report:
    """Add what became of a second question."""
    labels, means = [repr(turn.strategy) for turn in turns], [turn.means for turn in turns]
    heads = {
        "kept_for_second": ("tokens kept\nfor it", True),
        "kept_for_first": ("tokens kept for\nthe first question", True),
        "difference": ("difference", True),
        "overlap": ("shared tokens\n(Jaccard)", True),
    }
    figure = new_figure(9, 1.6 + 0.5 * len(turns))
    ax = figure.subplots()
    for place, turn in enumerate(turns):
        turn.plot(ax, place=place)
    ax.axvline(turns[0].dense.value, color="#999999", linewidth=0.8, label="dense")
    ax.set_yticks(range(len(turns)), labels)
    ax.set_ylim(len(turns) - 0.5, -0.5)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=3)
    note = "The second question has its own prompt; only the tokens are those of the first."
    return replace(
        report,
        shown=[*report.shown, means_table("Second question", labels, means, heads)],
        tables={**report.tables, "turns": long_table(labels, means)},
        figures={**report.figures, "turns": figure},
        notes={**report.notes, "turns.png": note},
        findings=[*report.findings, *(turn.explanation for turn in turns)],
    )
