"""What `tokenprune analyze` prints and draws for analyses that let the model answer."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from tokenprune.analysis import DamageReport, TurnsReport, analyse_damage, analyse_turns
from tokenprune.baselines import GridPool
from tokenprune.cli.outcome import COLOURS, Outcome, Table, long_rows, means_table, new_figure
from tokenprune.core.places import InDecoder
from tokenprune.core.strategy import Pipeline, PruningStrategy
from tokenprune.core.text import parse
from tokenprune.evaluate.batches import PictureNames
from tokenprune.evaluate.loading import LoadedModel
from tokenprune.evaluate.samples import Sample

SECOND = (
    "greedy_repmax",
    "trim_tokenator",
    "mi_alignment",
    "mi_alignment(metric='cosine', reduce='max', text='question')",
)
SINGLE = ("random", "uniform_grid", "grid_pool", "mi_alignment", "greedy_repmax", "trim_tokenator", "divprune")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for.

    Attributes:
        loaded: the model.
        samples: the data set.
        second: by sample id, another question about the same picture with its answers.
        strategies: with their budgets; empty for the analysis' own.
        args: further options.
        watch: wraps batches, for a progress bar.
    """

    loaded: LoadedModel
    samples: Sequence[Sample]
    second: dict[str, tuple[str, Sequence[str]]]
    strategies: Sequence[PruningStrategy]
    args: argparse.Namespace
    watch: Callable[[Iterable[Any]], Iterable[Any]]


def read_request(
    args: argparse.Namespace,
    loaded: LoadedModel,
    strategies: Sequence[PruningStrategy],
    count: int,
    samples: Sequence[Sample] | None,
) -> Request:
    """What the options ask for: these samples, or for None `count` bundled scenes unless --count says otherwise."""
    from tokenprune.evaluate.scenes import bundled_samples, second_questions

    second: dict[str, tuple[str, Sequence[str]]] = {}
    if samples is None:
        number = args.count or count
        samples = bundled_samples(number)
        second.update(second_questions(number))
    else:
        second = questions_about_the_same(samples)
    return Request(loaded=loaded, samples=samples, second=second, strategies=strategies, args=args, watch=_bar)


def questions_about_the_same(samples: Sequence[Sample]) -> dict[str, tuple[str, Sequence[str]]]:
    """For each sample the next other question about the same pictures, where there is one."""
    names = PictureNames()
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(names.of([sample]), []).append(sample)
    found: dict[str, tuple[str, Sequence[str]]] = {}
    for members in groups.values():
        for place, sample in enumerate(members):
            later = [*members[place + 1 :], *members[:place]]
            other = next((one for one in later if one.question != sample.question), None)
            if other is not None:
                found[sample.id] = (other.question, other.answers)
    return found


def over_seeds(strategy: PruningStrategy, seeds: int) -> list[PruningStrategy]:
    """The strategy once per seed when it draws at random with the default seed, else alone.

    Examples:
        >>> over_seeds(parse("random(keep=4)"), 2)
        [random(keep=4), random(keep=4, seed=1)]
        >>> over_seeds(parse("greedy_repmax(keep=4)"), 2)
        [greedy_repmax(keep=4)]
    """
    stages = strategy.stages if isinstance(strategy, Pipeline) else (strategy,)
    if not any(_draws(stage) for stage in stages):
        return [strategy]
    found = []
    for seed in range(seeds):
        changed: list[Any] = [replace(stage, seed=seed) if _draws(stage) else stage for stage in stages]  # type: ignore[type-var]
        found.append(changed[0] if len(changed) == 1 else Pipeline(changed))
    return found


def damage(request: Request) -> Outcome:
    """Flips, probabilities, calibration, difficulty, and a second question."""
    args = request.args
    strategies = list(request.strategies) or [parse(f"{name}(keep=0.111)") for name in SINGLE]
    pooled = GridPool(getattr(strategies[0], "keep", 0.111))
    by_label = {repr(strategy): over_seeds(strategy, args.seeds) for strategy in strategies}
    options = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    reports = analyse_damage(request.loaded, request.samples, by_label, pooled=pooled, watch=request.watch, **options)
    turns: tuple[TurnsReport, ...] = ()
    asked_twice = [sample for sample in request.samples if sample.id in request.second]
    if asked_twice:
        own = [strategy for strategy in request.strategies if not isinstance(strategy.place, InDecoder)]
        chosen = own if request.strategies else [_with_keep(text) for text in SECOND]
        if chosen:
            turns = analyse_turns(request.loaded, asked_twice, request.second, chosen, watch=request.watch, **options)
    return _damage_outcome(reports, turns, pooled, request)


def _damage_outcome(
    reports: Sequence[DamageReport], turns: Sequence[TurnsReport], pooled: PruningStrategy, request: Request
) -> Outcome:
    names, means = [report.label for report in reports], [report.means for report in reports]
    columns = {
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
    title, headers, rows = means_table("Damage to answers", names, means, columns)
    tests = [
        [f"{r.p_value:.2g}", f"{r.p_corrected:.2g}", "-" if r.mcnemar is None else f"{r.mcnemar.p_value:.2g}"]
        for r in reports
    ]
    tables: list[Table] = [
        (title, [*headers, "p", "p,\nHolm", "p,\nMcNemar"], [[*a, *b] for a, b in zip(rows, tests, strict=True)])
    ]
    files: dict[str, Sequence[Sequence[object]]] = {
        "damage.csv": long_rows(names, means),
        "tests.csv": [
            ("strategy", "p_dense", "p_dense_holm", "p_mcnemar", "only_strategy_right", "only_dense_right"),
            *(
                (r.label, r.p_value, r.p_corrected)
                + (("", "", "") if (m := r.mcnemar) is None else (m.p_value, m.only_first, m.only_second))
                for r in reports
            ),
        ],
        "calibration.csv": [
            ("strategy", "bin", "answers", "confidence", "accuracy"),
            *(
                (r.label, i, int(c.counts[i]), f"{c.confidence[i]:.6g}", f"{c.accuracy[i]:.6g}")
                for r in reports
                for c in (r.calibration,)
                for i in range(len(c.counts))
                if c.counts[i]
            ),
        ],
    }
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
    figures = {"damage.png": figure}
    notes = {
        "damage.png": f"Hard: dense right, {pooled!r} wrong, so pooling fails on all of them by construction. "
        "Calibration: ten bins of equal width.",
        "tests.csv": "Against dense: images exchanged, Holm over the strategies; McNemar for single runs.",
    }
    findings = [report.explanation for report in reports[1:]]
    if turns:
        labels = [repr(report.strategy) for report in turns]
        heads = {
            "kept_for_second": ("tokens kept\nfor it", True),
            "kept_for_first": ("tokens kept for\nthe first question", True),
            "difference": ("difference", True),
            "overlap": ("shared tokens\n(Jaccard)", True),
        }
        tables.append(means_table("Second question", labels, [report.means for report in turns], heads))
        files["turns.csv"] = long_rows(labels, [report.means for report in turns])
        second = new_figure(9, 1.6 + 0.5 * len(turns))
        ax = second.subplots()
        for place, turn in enumerate(turns):
            turn.plot(ax, place=place)
        ax.axvline(turns[0].dense.value, color="#999999", linewidth=0.8, label="dense")
        ax.set_yticks(range(len(turns)), labels)
        ax.set_ylim(len(turns) - 0.5, -0.5)
        ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=3)
        figures["turns.png"] = second
        notes["turns.png"] = (
            "The second question stands in a prompt of its own; only the tokens are those of the first."
        )
        findings += [turn.explanation for turn in turns]
    return Outcome(
        title="What does pruning do to single answers?",
        tables=tables,
        files=files,
        figures=figures,
        notes=notes,
        images=reports[0].means["accuracy"].units,
        findings=findings,
        strategies=names[1:],
        facts={"questions": len(request.samples), "split": repr(pooled), "seeds": request.args.seeds},
    )


def _draws(stage: PruningStrategy) -> bool:
    if not is_dataclass(stage) or getattr(stage, "seed", None) != 0:
        return False
    start = getattr(stage, "start", "random")  # a seed that only serves start="random" is idle under any other start
    return start == "random" and any(field.name == "seed" for field in fields(stage))


def _with_keep(text: str, keep: float = 0.111) -> PruningStrategy:
    from tokenprune.evaluate.methods import Method

    return Method(text).strategy(keep=keep)


def _bar(batches: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    yield from tqdm(batches, desc="batches", unit="", leave=False, mininterval=0.5, disable=None)
