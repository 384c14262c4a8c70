"""What `tokenprune analyze` prints and draws for each analysis."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from tokenprune.analysis import (
    NO_CONTROLS,
    AnalysedImage,
    Controls,
    analyse_alignment,
    analyse_information,
    analyse_redundancy,
    analyse_spatial,
    cross_score,
    split_score,
)
from tokenprune.analysis.cross_scoring import OBJECTIVES
from tokenprune.analysis.intervals import show
from tokenprune.cli.outcome import COLOURS, Outcome, Table, long_rows, means_table, new_figure, numbers
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.text import parse

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


def default_strategies(what: str) -> list[PruningStrategy]:
    """The strategies of an analysis that was not given any."""
    if what == "redundancy":
        return []
    if what == "information":
        return [parse("mi_alignment(keep=0.8)")]
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
    reports, names = analyse_alignment(chain([first], images), stages), [repr(stage) for stage in stages]
    columns = {
        "norm_share": ("variance\nfrom norms", True),
        "norm_correlation": ("rank corr.\nsmall norm", False),
        "norm_overlap": ("dropped also\nby norm", True),
        "question_change": ("dropped: changes\nwith question", True),
        "question_change_kept": ("kept: changes\nwith question", True),
        "object_dropped": ("dropped:\non objects", True),
        "object_share": ("all tokens:\non objects", True),
    }
    figure = new_figure(13.5, 5.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    tokens, stage = first.tokens, stages[0]
    if tokens.text is not None:
        objects = first.on_object if first.objects else None
        split_score(tokens.visual, tokens.text).plot(left, objects=objects, dropped=reports[0].images[0].dropped_share)
        left.set_title(f"image {first.id}, default score, {stage!r}", loc="left", fontsize=8)
    for place, report in enumerate(reports):
        offset = 0.7 * (place / len(reports) - 0.5 + 0.5 / len(reports))
        report.plot(right, colour=COLOURS[place % len(COLOURS)], offset=offset)
    right.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), fontsize=7, ncols=1)
    findings = [f"{stage!r} ({len(reports[0].ids)} images):", *(f"  {text}" for text in reports[0].explanation)]
    return Outcome(
        title="Does stage 1 read the question?",
        tables=[means_table("Stage 1", names, [report.means for report in reports], columns)],
        files={"alignment.csv": long_rows(names, [report.means for report in reports])},
        figures={"alignment.png": figure},
        notes={
            "alignment.png": "Left: the score of one image against its norm part; a line means that the norm decides. "
            "Right: what is dropped, with 95% intervals over images; crosses: by chance."
        },
        images=len(reports[0].ids),
        findings=findings,
        strategies=names,
    )


def information(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Mutual information estimated on its own, against the alignment score."""
    from tokenprune.alignment import MIAlignment

    stage = strategies[0]
    if len(strategies) > 1 or not isinstance(stage, MIAlignment):
        raise ValueError(
            f"--strategy {strategies[-1]!r}: information looks at one stage; give one mi_alignment(keep=...)"
        )
    report = analyse_information(images, stage)
    figure = new_figure(8.5, 3.6)
    report.plot(figure.subplots())
    body = [[name.replace("_", " "), show(mean)] for name, mean in report.means.items()]
    return Outcome(
        title="Is the alignment score mutual information?",
        tables=[("Estimated information", ("measure", "value"), body)],
        files={"information.csv": long_rows([repr(stage)], [report.means])},
        figures={"information.png": figure},
        notes={
            "information.png": "Estimated from nearest neighbours; grey: the same estimate for a shuffled score, which "
            "knows nothing."
        },
        images=len(report.ids),
        findings=report.explanation,
        strategies=[repr(stage)],
    )


def diagnostics(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Cross-scoring and overlap."""
    scores = cross_score(images, strategies)
    columns = {"kept": ("kept", False)}
    columns |= {name: (head.replace(" ", "\n"), False) for name, (head, _) in OBJECTIVES.items()}
    columns["distance_ratio"] = ("distance /\nrandom", False)
    figure = new_figure(16, 1.8 + 0.5 * len(strategies))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    scores.plot(left)
    left.set_title("Every kept set under every objective", loc="left")
    scores.overlap.plot(right)
    right.set_title("Jaccard overlap of kept sets", loc="left")
    right.set_yticks([])
    names = list(scores.overlap.names)
    matrix = [["strategy", *names], *([name, *row] for name, row in zip(names, scores.overlap.jaccard, strict=True))]
    return Outcome(
        title="Every kept set under every objective",
        tables=[means_table("Kept sets under every objective", names, scores.means, columns)],
        files={"diagnostics.csv": long_rows(names, scores.means), "overlap.csv": matrix},
        figures={"diagnostics.png": figure},
        notes={
            "diagnostics.png": "Left: each column coloured from its worst (pale) to its best strategy. Right: share of "
            "kept tokens that two strategies have in common."
        },
        images=scores.images,
        strategies=names,
    )


def redundancy(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Visual against text tokens, with fewer and more confounders controlled."""
    settings = (NO_CONTROLS, Controls(unit=False, centre=False), Controls())
    reports = analyse_redundancy(images, settings, tau=tau)
    figure = new_figure(14, 4.2)
    for ax, report in zip(figure.subplots(1, 3), reports, strict=True):
        report.plot(ax)
    tables: list[Table] = []
    rows: list[Sequence[object]] = [("controls", "measure", "side", "value", "low", "high", "images")]
    for report in reports:
        sides = {"visual": report.visual, "text": report.text, "difference": report.difference}
        body = [[name, *(show(side[name]) for side in sides.values())] for name in report.visual]
        tables.append((f"Redundancy, {report.controls.label} (tau {tau:g})", ("measure", *sides), body))
        for side, means in sides.items():
            rows.extend((report.controls.label, name, side, *numbers(mean)) for name, mean in means.items())
    last = reports[-1]
    found = [
        f"{name.replace('_', ' ')}: visual {show(last.visual[name])}, text {show(last.text[name])}, difference "
        f"{show(last.difference[name])}"
        for name in ("mean_cosine", "neighbours", "rank_share")
    ]
    return Outcome(
        title="Are visual tokens more redundant than text tokens?",
        tables=tables,
        files={"redundancy.csv": rows},
        figures={"redundancy.png": figure},
        notes={"redundancy.png": "Pairwise cosine within an image, confounders taken out from left to right."},
        images=len(last.ids),
        findings=[f"With all confounders taken out ({last.controls.label}), {len(last.ids)} images:", *found],
    )


def spatial(images: Images, strategies: Strategies, tau: float) -> Outcome:
    """Heat maps, biases, object recall."""
    reports, names = analyse_spatial(images, strategies), [repr(strategy) for strategy in strategies]
    columns = {
        "kept_share": ("kept", True),
        "row_shift": ("row shift", False),
        "column_shift": ("column shift", False),
        "centre_ratio": ("distance to\ncentre, ratio", False),
        "object_tokens": ("object tokens\nkept", True),
        "object_lift": ("over chance", False),
        "objects_hit": ("objects with\na token kept", True),
    }
    if reports[0].means["padding_share"].units:
        columns |= {"padding_kept": ("of the kept:\nin padding", True), "padding_share": ("of all:\nin padding", True)}
    across = min(3, len(reports))
    down = -(-len(reports) // across)
    figure = new_figure(4.4 * across, 3.7 * down)
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
    title, headers, rows = means_table("Where tokens are kept", names, [r.means for r in reports], columns)
    bias = [(f"{report.row_bias:.3f}", f"{report.column_bias:.3f}") for report in reports]
    return Outcome(
        title="Where do methods keep tokens?",
        tables=[(title, [*headers, "row\nbias", "column\nbias"], [[*a, *b] for a, b in zip(rows, bias, strict=True)])],
        files={
            "spatial.csv": long_rows(names, [report.means for report in reports]),
            "heat.csv": [("strategy", "row", "column", "share_of_images"), *heat],
        },
        figures={"spatial.png": figure},
        notes={"spatial.png": "How often each place is kept, relative to keeping everywhere alike (white)."},
        images=len(reports[0].ids),
        strategies=names,
    )


RUN: Mapping[str, Callable[[Images, Strategies, float], Outcome]] = {
    "alignment": alignment,
    "diagnostics": diagnostics,
    "information": information,
    "redundancy": redundancy,
    "spatial": spatial,
}
