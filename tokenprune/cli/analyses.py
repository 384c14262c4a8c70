"""What `tokenprune analyze` prints and draws for each analysis."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenprune.analysis import (
    NO_CONTROLS,
    AnalysedImage,
    Controls,
    analyse_alignment,
    analyse_redundancy,
    analyse_spatial,
    cross_score,
    split_score,
)
from tokenprune.analysis.cross_scoring import OBJECTIVES
from tokenprune.analysis.intervals import show
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.statistics import Interval
from tokenprune.parsing import parse
from tokenprune.strategy import PruningStrategy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
Images = Iterator[AnalysedImage]
Strategies = Sequence[PruningStrategy]

STAGE_ONE = (
    "mi_alignment(keep=0.8)",
    "mi_alignment(keep=0.8, text='question')",
    "mi_alignment(keep=0.8, metric='cosine')",
    "mi_alignment(keep=0.8, metric='cosine', reduce='max')",
    "mi_alignment(keep=0.8, metric='cosine', reduce='max', text='question')",
)
SELECTIONS = ("random", "uniform_grid", "mi_alignment", "greedy_repmax", "trim_tokenator", "divprune")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What an analysis gives.

    Attributes:
        tables: title, headers and rows, printed.
        files: CSV files by name, as rows.
        figure: drawn.
        images: how many images there were.
        findings: sentences, printed under the tables.
        strategies: texts of the strategies that ran.
    """

    tables: Sequence[Table]
    files: Mapping[str, Sequence[Sequence[object]]]
    figure: "Figure"
    images: int
    findings: Sequence[str] = ()
    strategies: Sequence[str] = ()


def default_strategies(what: str) -> list[PruningStrategy]:
    """The strategies of an analysis that was not given any."""
    if what == "redundancy":
        return []
    texts = STAGE_ONE if what == "alignment" else [f"{name}(keep=0.111)" for name in SELECTIONS]
    return [parse(text) for text in texts]


def alignment(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Stage 1 under several options."""
    from tokenprune.alignment import MIAlignment

    stages = [strategy for strategy in strategies if isinstance(strategy, MIAlignment)]
    if len(stages) < len(strategies):
        wrong = next(strategy for strategy in strategies if not isinstance(strategy, MIAlignment))
        raise ValueError(f"--strategy {wrong!r}: alignment looks at stage 1; give mi_alignment(keep=...) with options")
    first = next(images)  # drawn; all others are only measured
    reports = analyse_alignment(chain([first], images), stages)
    columns = {
        "norm_share": ("variance\nfrom norms", True),
        "norm_correlation": ("rank corr.\nsmall norm", False),
        "norm_overlap": ("dropped also\nby norm", True),
        "question_change": ("dropped: changes\nwith question", True),
        "question_change_kept": ("kept: changes\nwith question", True),
        "object_dropped": ("dropped:\non objects", True),
        "object_share": ("all tokens:\non objects", True),
    }
    figure = _figure(13.5, 5.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    tokens, stage = first.tokens, stages[0]
    if tokens.text is not None:
        objects = first.on_object if first.objects else None
        split_score(tokens.visual, tokens.text).plot(left, objects=objects, dropped=reports[0].images[0].dropped_share)
        left.set_title(f"image {first.id}, default score, {stage!r}", loc="left", fontsize=8)
    for place, report in enumerate(reports):
        offset = 0.7 * (place / len(reports) - 0.5 + 0.5 / len(reports))
        report.plot(right, colour=_COLOURS[place % len(_COLOURS)], offset=offset)
    right.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), fontsize=7, ncols=1)
    findings = [f"{stage!r} ({len(reports[0].ids)} images):", *(f"  {text}" for text in reports[0].explanation)]
    return Outcome(
        tables=[_means_table("Stage 1", stages, [report.means for report in reports], columns)],
        files={"alignment.csv": _long(stages, [report.means for report in reports])},
        figure=figure,
        images=len(reports[0].ids),
        findings=findings,
        strategies=[repr(one) for one in stages],
    )


def diagnostics(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Cross-scoring and overlap."""
    scores = cross_score(images, strategies)
    columns = {"kept": ("kept", False)}
    columns |= {name: (head.replace(" ", "\n"), False) for name, (head, _) in OBJECTIVES.items()}
    columns["distance_ratio"] = ("distance /\nrandom", False)
    figure = _figure(16, 1.8 + 0.5 * len(strategies))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    scores.plot(left)
    left.set_title("Every kept set under every objective", loc="left")
    scores.overlap.plot(right)
    right.set_title("Jaccard overlap of kept sets", loc="left")
    right.set_yticks([])
    names = scores.overlap.names
    matrix = [["strategy", *names], *([name, *row] for name, row in zip(names, scores.overlap.jaccard, strict=True))]
    return Outcome(
        tables=[_means_table("Kept sets under every objective", strategies, scores.means, columns)],
        files={"diagnostics.csv": _long(strategies, scores.means), "overlap.csv": matrix},
        figure=figure,
        images=scores.images,
        strategies=names,
    )


def redundancy(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Visual against text tokens, with fewer and more confounders controlled."""
    settings = (NO_CONTROLS, Controls(unit=False, centre=False), Controls())
    reports = analyse_redundancy(images, settings, tau=tau)
    figure = _figure(14, 4.2)
    for ax, report in zip(figure.subplots(1, 3), reports, strict=True):
        report.plot(ax)
    tables: list[Table] = []
    rows: list[Sequence[object]] = [("controls", "measure", "side", "value", "low", "high", "images")]
    for report in reports:
        sides = {"visual": report.visual, "text": report.text, "difference": report.difference}
        body = [[name, *(show(side[name]) for side in sides.values())] for name in report.visual]
        tables.append((f"Redundancy, {report.controls.label} (tau {tau:g})", ("measure", *sides), body))
        for side, means in sides.items():
            rows.extend((report.controls.label, name, side, *_numbers(mean)) for name, mean in means.items())
    return Outcome(tables=tables, files={"redundancy.csv": rows}, figure=figure, images=len(reports[0].ids))


def spatial(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Heat maps, biases, object recall."""
    reports = analyse_spatial(images, strategies)
    columns = {
        "kept_share": ("kept", True),
        "row_shift": ("row shift", False),
        "column_shift": ("column shift", False),
        "centre_ratio": ("distance to\ncentre, ratio", False),
        "object_tokens": ("object tokens\nkept", True),
        "object_lift": ("over chance", False),
        "objects_hit": ("objects with\na token kept", True),
    }
    across = min(3, len(reports))
    down = -(-len(reports) // across)
    figure = _figure(4.4 * across, 3.7 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, report in zip(axes, reports, strict=False):
        report.plot(ax)
    for ax in axes[len(reports) :]:
        ax.set_axis_off()
    heat = [
        (repr(report.strategy), row, column, float(report.heat[row, column]))
        for report in reports
        for row in range(report.heat.shape[0])
        for column in range(report.heat.shape[1])
    ]
    title, headers, rows = _means_table("Where tokens are kept", strategies, [r.means for r in reports], columns)
    bias = [(f"{report.row_bias:.3f}", f"{report.column_bias:.3f}") for report in reports]
    return Outcome(
        tables=[(title, [*headers, "row\nbias", "column\nbias"], [[*a, *b] for a, b in zip(rows, bias, strict=True)])],
        files={
            "spatial.csv": _long(strategies, [report.means for report in reports]),
            "heat.csv": [("strategy", "row", "column", "share_of_images"), *heat],
        },
        figure=figure,
        images=len(reports[0].ids),
        strategies=[repr(one) for one in strategies],
    )


RUN: Mapping[str, Callable[[Images, Strategies, float], Outcome]] = {
    "alignment": alignment,
    "diagnostics": diagnostics,
    "redundancy": redundancy,
    "spatial": spatial,
}


def _figure(width: float, height: float) -> "Figure":
    made: Any = need("matplotlib.figure").Figure(figsize=(width, height), dpi=150, layout="constrained")
    return made


def _means_table(
    title: str,
    strategies: Strategies,
    means: Sequence[Mapping[str, Interval]],
    columns: Mapping[str, tuple[str, bool]],
) -> Table:
    rows = [
        [
            repr(strategy),  # intervals on a second line: the columns stay narrow
            *(show(row[name], percent=percent).replace(" [", "\n[") for name, (_, percent) in columns.items()),
        ]
        for strategy, row in zip(strategies, means, strict=True)
    ]
    return title, ["Strategy", *(head for head, _ in columns.values())], rows


def _long(strategies: Strategies, means: Sequence[Mapping[str, Interval]]) -> list[Sequence[object]]:
    """One row per strategy and measure."""
    return [
        ("strategy", "measure", "value", "low", "high", "images"),
        *(
            (repr(strategy), name, *_numbers(mean))
            for strategy, row in zip(strategies, means, strict=True)
            for name, mean in row.items()
        ),
    ]


def _numbers(mean: Interval) -> Iterator[object]:
    yield from (f"{number:.6g}" if mean.units else "" for number in (mean.value, mean.low, mean.high))
    yield mean.units
