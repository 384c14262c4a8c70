"""`tokenprune optimality`: how far greedy RepMax and its relatives are from the best possible set, with proof."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import App, Parameter

from tokenprune.cli.console import make_console
from tokenprune.cli.options import JsonFlag, Texts, check_counts, command_line
from tokenprune.cli.token_files import check_files, claimed, read_tokens
from tokenprune.core.budget import Keep, keep_count, parse_budget
from tokenprune.core.tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenprune.evaluate.methods import Method
    from tokenprune.evaluate.report import Report
    from tokenprune.repmax import GapRow
    from tokenprune.repmax.problem.distances import Distance

DISTANCES = ("cosine", "euclidean", "sqeuclidean", "angular")
TITLE = "Gap to the proved optimum or best bound"
COLUMNS = ("Distance", "Kept", "Method", "Mean %", "Worst %", "Normalised %", "Own tangent %", "Proved", "ms")
app = App(name="optimality")


@Parameter(name="*", group="What to measure")
@dataclass(frozen=True, kw_only=True)
class OptimalityOptions:
    """Say what is measured.

    Attributes:
        keep: budgets, separated by commas.
        strategy: also this strategy, without its budget, e.g. divprune; repeatable. On files and synthetic tokens only
            what needs nothing but the tokens.
        distance: separated by commas: cosine, euclidean, sqeuclidean, angular.
        images: at most so many images.
        synthetic: a synthetic cloud instead: clusters, aniso, spatial, outliers, dups, ...
        size: tokens of a synthetic cloud.
        width: width of a synthetic cloud.
        time_limit: seconds for each proof.
        seed: of random subsets and clouds.
    """

    keep: str = "33.3%,22.2%,11.1%"
    strategy: Texts = ()
    distance: str = "cosine,euclidean"
    images: int = 10
    synthetic: str | None = None
    size: int = 576
    width: int = 64
    time_limit: float = 10.0
    seed: int = 0


@app.default
def optimality(
    *tokens: Annotated[Path, Parameter(name="TOKENS")],
    what: OptimalityOptions = OptimalityOptions(),
    out: Annotated[Path, Parameter(group="Output")] = Path("runs/gap"),
    json: JsonFlag = False,
) -> int:
    """Select tokens with every RepMax method and compare with the proved optimum or bound.

    Writes gap.csv and gap.png. Without TOKENS the visual tokens of the bundled model on its test scenes are used.

    Args:
        tokens: .npy or .safetensors files with (n, d) or (b, n, d) tokens.
        out: folder of the results.
    """
    from tokenprune.repmax import token_cloud

    keeps = [parse_budget(text) for text in what.keep.split(",")]
    distances = [text.strip() for text in what.distance.split(",")]
    unknown = [text for text in distances if text not in DISTANCES]
    if unknown:
        raise ValueError(f"--distance must list some of {', '.join(DISTANCES)}, got {unknown[0]!r}")
    check_counts(images=what.images)
    methods = [_method(text) for text in what.strategy]

    def check(n: int) -> None:
        for keep in keeps:
            _count(keep, n)

    if what.synthetic and tokens:
        raise ValueError("give TOKENS or --synthetic, not both")
    if what.synthetic:
        check(len(token_cloud(cast("Any", what.synthetic), what.size, what.width, seed=what.seed)))
    check_files(tokens, what.images, check)
    with claimed(out):
        rows = _measure(tokens, what, keeps, distances, methods, quiet=json)
        report = report_of(rows, tokens, what)
        report.write(out)
    if json:
        from tokenprune.cli.console import print_json

        print_json(report, out)
        return 0
    console = make_console()
    console.print(_table(rows))
    console.print(f"wrote gap.csv, gap.png and report.html in {out}", highlight=False, soft_wrap=True)
    return 0


def _measure(
    files: Sequence[Path],
    what: OptimalityOptions,
    keeps: Sequence[Keep],
    distances: Sequence[str],
    methods: Sequence["Method"],
    *,
    quiet: bool,
) -> "list[GapRow]":
    """Solve every image at every budget and distance."""
    from tokenprune.repmax import measure_gap

    console = make_console()
    rows: list[GapRow] = []
    for name, image in _images(files, what, methods):
        tokens = image.visual if isinstance(image, Tokens) else image
        for distance in distances:
            for keep in keeps:
                k = _count(keep, len(tokens))
                rows += measure_gap(
                    tokens,
                    k,
                    distance=cast("Distance", distance),
                    time_limit=what.time_limit,
                    image=name,
                    seed=what.seed,
                    others={method.label: partial(_chosen, method, image, k) for method in methods},
                )
        done = [row for row in rows if row.method == "exact"]
        if not quiet:
            text = f"{name}: {sum(row.proved for row in done)} of {len(done)} optima proved so far"
            console.print(text, highlight=False)
    return rows


def _count(keep: Keep, n: int) -> int:
    """Tokens that a budget keeps of n, at least two and not all."""
    k = keep_count(keep, n)
    if not 2 <= k < n:
        raise ValueError(f"--keep {keep} of {n} tokens is {k}; it must be 2 to {n - 1}")
    return k


def _method(text: str) -> "Method":
    """A strategy without its budget that chooses among tokens before the language model.

    Raises:
        ValueError: when it does something else.
    """
    from tokenprune.evaluate.methods import Method
    from tokenprune.models.plan import site_of

    method = Method(text)
    strategy = method.strategy(keep=2)
    site, merges = site_of(strategy.place), strategy.yields == "merged"
    if site != "projector" or merges:
        raise ValueError(
            f"--strategy {text}: the objective is about tokens that are chosen before the language model; "
            f"{strategy.name} {'makes new ones' if merges else f'acts at the site {site!r}'}"
        )
    return method


def _chosen(method: "Method", image: Any, k: int) -> list[int]:  # noqa: ANN401
    """What a strategy keeps of an image, given as `Tokens` or as an array."""
    import torch

    tokens = image if isinstance(image, Tokens) else Tokens(torch.as_tensor(image))
    kept: list[int] = method.strategy(keep=k).select(tokens).indices.tolist()
    return kept


def _source(files: Sequence[Path], what: OptimalityOptions) -> str:
    if what.synthetic:
        return f"synthetic tokens: {what.synthetic}, n = {what.size}, d = {what.width}"
    return ", ".join(path.name for path in files) or "visual tokens of the bundled model, test scenes"


def _images(
    files: Sequence[Path], what: OptimalityOptions, methods: Sequence["Method"] = ()
) -> Iterator[tuple[str, Any]]:
    """Names of the images that the arguments ask for, and `Tokens` from a model or an array (n, d) from elsewhere."""
    if what.synthetic:
        from tokenprune.repmax import token_cloud

        for seed in range(what.seed, what.seed + what.images):
            yield f"{what.synthetic}-{seed}", token_cloud(cast("Any", what.synthetic), what.size, what.width, seed=seed)
    elif files:
        yield from islice((image for path in files for image in read_tokens(path)), what.images)
    else:
        from transformers.utils import logging

        from tokenprune.analysis import bundled_images
        from tokenprune.evaluate.loading import load

        logging.disable_progress_bar()
        strategies = [method.strategy(keep=2) for method in methods]
        want = {signal for strategy in strategies for signal in strategy.needs}
        for image in bundled_images(load(), what.images, seed=what.seed, want=want):
            yield image.id, image.tokens


def grouped(rows: Sequence["GapRow"]) -> dict[tuple[str, int, str], list["GapRow"]]:
    """Rows by distance, budget and method, in order of appearance."""
    groups: dict[tuple[str, int, str], list[GapRow]] = {}
    for row in rows:
        groups.setdefault((row.distance, row.k, row.method), []).append(row)
    return groups


def report_of(rows: Sequence["GapRow"], files: Sequence[Path], what: OptimalityOptions) -> "Report":
    """Give the report of the rows, with all digits."""
    from tokenprune.evaluate.environment import git_state, package_versions
    from tokenprune.evaluate.report import Report, Shown, frame
    from tokenprune.repmax import GapRow

    source = _source(files, what)
    configuration = {**asdict(what), "tokens": [str(path) for path in files], "source": source}
    columns = GapRow.columns()
    return Report(
        kind="optimality",
        title=TITLE,
        shown=[Shown(title=TITLE, columns=COLUMNS, rows=tuple(tuple(row) for row in _table_rows(rows)))],
        tables={"gap": frame(columns, [[getattr(row, name) for name in columns] for row in rows])},
        figures={"gap": draw(rows, source=source)},
        titles={"gap.csv": "Every method on every image", "gap.png": TITLE},
        notes={"gap.csv": "Values, bounds, gaps and seconds.", "gap.png": "Means over images with their range."},
        configuration={**configuration, "versions": package_versions(), "git": git_state()},
        command=command_line(),
    )


def _table_rows(rows: Sequence["GapRow"]) -> Iterator[list[str]]:
    for (distance, k, method), members in grouped(rows).items():
        count = len(members)
        cells = (
            sum(row.gap for row in members) / count,
            max(row.gap for row in members),
            sum(row.normalised_gap for row in members) / count,
            sum(row.tangent_gap for row in members) / count,
        )
        proved = f"{sum(row.proved for row in members)}/{count}"
        milliseconds = f"{1000 * sum(row.seconds for row in members) / count:.1f}"
        yield [distance, str(k), method, *(percent(cell) for cell in cells), proved, milliseconds]


def _table(rows: Sequence["GapRow"]) -> Any:  # noqa: ANN401
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=TITLE)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("Distance", "Method") else "right", no_wrap=True)
    last = None
    for row in _table_rows(rows):
        if last not in (None, row[:2]):
            table.add_section()
        last = row[:2]
        table.add_row(*row)
    return table


def percent(share: float) -> str:
    """Three significant digits of a percentage; "0" for what is within the solver's tolerance.

    Examples:
        >>> percent(0.1234), percent(0.00001234), percent(1e-10)
        ('12.3', '0.00123', '0')
    """
    if share <= 2e-9:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{digits}f}"


def draw(rows: Sequence["GapRow"], *, source: str) -> "Figure":
    """One panel per distance: gap against kept tokens, a line per method, means with the range over images."""
    import numpy as np

    from tokenprune.evaluate.extras import need
    from tokenprune.evaluate.figures import STYLE

    matplotlib = need("matplotlib")
    from matplotlib.figure import Figure

    looks = {
        "random": ("#777777", "o"),
        "first_greedy": ("#E69F00", "v"),
        "greedy": ("#D55E00", "o"),
        "reverse_greedy": ("#CC79A7", "^"),
        "greedy+swap": ("#0072B2", "D"),
        "relax_round": ("#009E73", "P"),
    }
    names = {"first_greedy": "greedy from token 0", "random": "random subset", "relax_round": "rounded relaxation"}
    distances = list(dict.fromkeys(row.distance for row in rows))
    floor = 1e-6  # percent; what is at the floor is optimal to the solver's tolerance
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(distances) + 1.6, 4.2), dpi=150, layout="constrained")
        panels = figure.subplots(1, len(distances), sharey=True, squeeze=False)[0]
        for panel, distance in zip(panels, distances, strict=True):
            budgets = sorted({row.k for row in rows if row.distance == distance})
            for place, (method, (colour, marker)) in enumerate(looks.items()):
                dodged = [k * (1 + 0.012 * (place - 2.5)) for k in budgets]  # so that equal values stay visible
                values = [
                    [r.gap * 100 for r in rows if (r.distance, r.k, r.method) == (distance, k, method)] for k in budgets
                ]
                means = np.maximum([float(np.mean(v)) for v in values], floor)
                low = means - np.maximum([min(v) for v in values], floor)
                high = np.maximum([max(v) for v in values], floor) - means
                panel.errorbar(
                    dodged,
                    means,
                    yerr=[np.maximum(low, 0), np.maximum(high, 0)],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linewidth=1.2,
                    elinewidth=0.7,
                    capsize=2,
                    label=names.get(method, method.replace("_", " ")),
                )
            swaps = [[r for r in rows if (r.distance, r.k, r.method) == (distance, k, "greedy+swap")] for k in budgets]
            for attribute, style, label in (
                ("tangent_gap", "--", "certified: tangent at greedy+swap"),
                ("convex_gap", ":", "certified: convex bound"),
            ):
                means = [100 * float(np.mean([getattr(r, attribute) for r in members])) for members in swaps]
                panel.plot(budgets, np.maximum(means, floor), style, color="#0072B2", linewidth=1.2, label=label)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(budgets, [str(k) for k in budgets])
            panel.minorticks_off()
            panel.set_title(distance)
            panel.set_xlabel("tokens kept")
        panels[0].set_ylabel("below the proved optimum or bound, %")
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        proved = sum(row.proved for row in rows) / len(rows)
        images = len({row.image for row in rows})
        figure.supxlabel(
            f"{source}; {images} image{'s' if images > 1 else ''}, mean and range; proved in {100 * proved:.0f}% "
            f"of cases. Values at {floor:g}% are optimal to the solver's tolerance.",
            fontsize=7,
            color="#555555",
        )
    return figure
