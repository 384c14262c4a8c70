"""`accuracy_vs_tokens.png`: accuracy against kept tokens, and the paired difference to Random."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenprune.evaluate.cells import DENSE
from tokenprune.evaluate.extras import need
from tokenprune.evaluate.methods import show_budget
from tokenprune.evaluate.summary import REFERENCE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by readers with any colour vision, and in grey by their markers.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LABEL = 46  # characters of a legend entry before it breaks
_CONTROLS = {REFERENCE: ("#555555", "o"), "uniform_grid": ("#808080", "s"), "grid_pool": ("#A0A0A0", "D")}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}


def accuracy_figure(rows: Sequence[Row], *, footer: str = "") -> bytes:
    """Two panels as PNG: accuracy over kept tokens (log scale), and accuracy minus Random with 95% intervals.

    A fixed method is one point, at the tokens that it reached.

    Args:
        rows: the results table; dense first.
        footer: small print under the panels.

    Raises:
        ValueError: when no pruned row is finished yet.
    """
    pruned = [row for row in rows if not row.is_dense]
    if not pruned:
        raise ValueError("accuracy_figure: there is no pruned row to draw; run at least one strategy")
    with need("matplotlib").rc_context(STYLE):
        methods = list(dict.fromkeys(row.method for row in pruned))
        longest = min(_LABEL, max(len(method) for method in methods))
        columns = max(1, min(4, 130 // (longest + 8)))
        lines = sum(len(textwrap.wrap(method, _LABEL)) for method in methods) / columns
        # 4.6 inches hold a legend of two lines; more lines make the figure higher, not the panels lower.
        height = 4.6 + 0.22 * max(0.0, lines - 2)
        figure = need("matplotlib.figure").Figure(figsize=(10, height), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2)
        looks = _looks(methods)
        for row in pruned:
            if row.is_fixed:  # one point, no line in the legend
                looks[row.method]["linestyle"] = "none"
        _draw_accuracy(left, rows, pruned, methods, looks)
        _draw_difference(right, pruned, methods, looks)
        for axes in (left, right):
            _token_axis(axes, pruned)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=columns, columnspacing=1.6)
        if footer:
            figure.supxlabel("\n".join(textwrap.wrap(footer, 190)), fontsize=6.5, color="#666666")
        return to_png(figure)


def to_png(figure: "Figure") -> bytes:
    """A figure as PNG, without the software's version in it, so that equal figures are equal files.

    `savefig` draws everything twice and compresses an alpha channel that is the same everywhere; for a figure full of
    photographs that is most of the time.
    """
    from PIL import Image

    figure.set_facecolor("white")
    canvas = need("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    buffer = BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.save(buffer, format="png", compress_level=4, dpi=(figure.dpi, figure.dpi))
    return buffer.getvalue()


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    looks: dict[str, dict[str, Any]] = {}
    own = [method for method in methods if method not in _CONTROLS]
    for method in methods:
        if method in _CONTROLS:
            colour, marker = _CONTROLS[method]
            looks[method] = {"color": colour, "marker": marker, "linestyle": "--", "linewidth": 1.2, "markersize": 4.5}
            looks[method]["markerfacecolor"] = "white"
        else:
            # The last method is the one under study as a rule: it gets the first colour.
            turn, place = divmod(len(own) - 1 - own.index(method), len(_COLOURS))
            look = {"color": _COLOURS[place], "marker": _MARKERS[place], "linestyle": ("-", "-.", ":")[turn % 3]}
            looks[method] = {**look, "linewidth": 1.8, "markersize": 5}
    return looks


def _draw_accuracy(
    axes: "Axes", rows: Sequence[Row], pruned: Sequence[Row], methods: Sequence[str], looks: dict[str, dict[str, Any]]
) -> None:
    dense = next((row for row in rows if row.is_dense), None)
    if dense is not None:
        axes.axhline(
            100 * dense.accuracy.value, color="black", linewidth=1, label=f"{DENSE} ({dense.tokens_out:.0f} tokens)"
        )
        axes.axhspan(100 * dense.accuracy.low, 100 * dense.accuracy.high, color="black", alpha=0.06, linewidth=0)
    for method in methods:
        own = sorted((row for row in pruned if row.method == method), key=lambda row: row.tokens_out)
        x, y = [row.tokens_out for row in own], [100 * row.accuracy.value for row in own]
        label = "\n".join(textwrap.wrap(method, _LABEL))
        if own[0].is_fixed:
            label += " (fixed)"
        if own[0].seed_sd is not None:
            label += f" ({own[0].seeds} seeds, ±1 sd)"
        axes.plot(x, y, label=label, **looks[method])
        if own[0].seed_sd is not None:
            sd = [100 * (row.seed_sd or 0.0) for row in own]
            low, high = [a - b for a, b in zip(y, sd, strict=True)], [a + b for a, b in zip(y, sd, strict=True)]
            axes.fill_between(x, low, high, color=looks[method]["color"], alpha=0.25, linewidth=0)
    axes.set_title("Accuracy", loc="left")
    axes.set_ylabel("exact match (%)")


def _draw_difference(
    axes: "Axes", pruned: Sequence[Row], methods: Sequence[str], looks: dict[str, dict[str, Any]]
) -> None:
    axes.axhline(0, color=_CONTROLS[REFERENCE][0], linewidth=1.2, linestyle="--")
    drawn = [method for method in methods if any(row.method == method and row.difference for row in pruned)]
    for place, method in enumerate(drawn):
        own = sorted((row for row in pruned if row.method == method and row.difference), key=lambda row: row.tokens_out)
        # Moved apart a little sideways, evenly on the log axis, so that intervals do not hide one another.
        shift = 1.035 ** (place - (len(drawn) - 1) / 2)
        x = [row.tokens_out * shift for row in own]
        found = [row.difference for row in own if row.difference is not None]
        y = [100 * d.value for d in found]
        ends = [[100 * (d.value - d.low) for d in found], [100 * (d.high - d.value) for d in found]]
        axes.errorbar(x, y, yerr=ends, capsize=2, elinewidth=1, **looks[method])
    axes.set_title("Difference to Random, paired, 95% intervals", loc="left")
    axes.set_ylabel("accuracy minus Random (points)")


def _token_axis(axes: "Axes", pruned: Sequence[Row]) -> None:
    axes.set_xscale("log", base=2)
    counts = [row.tokens_out for row in pruned]
    if max(counts) < 1.5 * min(counts):  # one budget: do not let the axis zoom in on rounding
        axes.set_xlim(min(counts) / 1.35, max(counts) * 1.35)
    # GridPool keeps fewer than asked for; a tick stands where the other methods are.
    ticks: dict[str, float] = {}
    for row in pruned:
        if row.keep is not None:
            ticks[show_budget(row.keep)] = max(row.tokens_out, ticks.get(show_budget(row.keep), 0.0))
    axes.set_xticks(list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xticklabels([f"{count:.0f}\n{share}" if share.endswith("%") else share for share, count in ticks.items()])
    axes.set_xlabel("visual tokens kept per image")
