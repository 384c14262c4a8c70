"""`kept_tokens.png`: one row per method, one scene per column, with question and answer."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune.evaluate.extras import need
from tokenprune.evaluate.figures import STYLE, to_png
from tokenprune.evaluate.report.pictures import Pixels, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT, _WRONG = "#00795C", "#C44E00"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one method kept of one picture and what the model answered from it; `indices` None means everything."""

    text: str
    correct: bool
    indices: tuple[int, ...] | None
    merged: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """One picture as the model saw it, its question, and one answer per row of the gallery."""

    picture: Pixels
    grid: tuple[int, int]
    question: str
    reference: str
    answers: tuple[Answer, ...]


def gallery(columns: Sequence[Column], rows: Sequence[str], *, title: str = "", footer: str = "") -> bytes:
    """The figure as PNG.

    Args:
        columns: the scenes; each with one answer per row.
        rows: row labels, for instance the methods.
        title: headline.
        footer: small print underneath.

    Raises:
        ValueError: when there is no column, or one has another number of answers than there are rows.
    """
    if not columns or any(len(column.answers) != len(rows) for column in columns):
        raise ValueError(f"gallery: need one or more columns with {len(rows)} answers each, got {len(columns)} columns")
    with need("matplotlib").rc_context(STYLE):
        labels = ["\n".join(textwrap.wrap(label, 20, break_long_words=False)) for label in rows]
        # Inches: the pictures, and beside them a margin as wide as the longest line of a label.
        margin = 0.35 + 0.088 * max(len(line) for label in labels for line in label.split("\n"))
        figure = need("matplotlib.figure").Figure(
            figsize=(1.75 * len(columns) + margin, 2.0 * len(rows) + 0.9), dpi=170, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02, hspace=0.02)
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, label in enumerate(labels):
            for place, column in enumerate(columns):
                _draw(grid[row, place], column, column.answers[row])
            grid[row, 0].set_ylabel(
                label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9, fontweight="bold"
            )
        for place, column in enumerate(columns):
            question = "\n".join(textwrap.wrap(column.question.replace(" ?", "?"), 26))
            grid[0, place].set_title(f"{question}\n→ {column.reference}", fontsize=8, fontweight="normal")
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold")
        if footer:
            figure.supxlabel(
                "\n".join(textwrap.wrap(footer, int(26 * len(columns) + 22))), fontsize=6.5, color="#666666"
            )
        return to_png(figure)


def _draw(axes: "Axes", column: Column, answer: Answer) -> None:
    rows, columns = column.grid
    everything = answer.indices is None
    indices = range(rows * columns) if answer.indices is None else answer.indices
    picture = overlay(column.picture, list(indices), column.grid, merged=answer.merged, side=384)
    axes.imshow(picture, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.6)
    mark, colour = ("✓", _RIGHT) if answer.correct else ("✗", _WRONG)
    count = "" if everything else f"   ({len(list(indices))})"
    axes.set_xlabel(f"{answer.text or '(nothing)'} {mark}{count}", color=colour, fontsize=8, labelpad=2)
