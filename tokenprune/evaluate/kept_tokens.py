"""Choose scenes and collect what `kept_tokens.png` shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenprune.evaluate.batches import processed
from tokenprune.evaluate.cells import Cell
from tokenprune.evaluate.gallery import Answer, Column, gallery
from tokenprune.evaluate.methods import show_budget
from tokenprune.evaluate.report.pictures import Pixels, overlay, seen_picture
from tokenprune.evaluate.report.slides import Card, Slide, Word, jpeg
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample
from tokenprune.evaluate.summary import correctness

COLUMNS = 5
"""Samples of the figure."""
SLIDES = 12
"""Samples to page through in the report."""


def kept_tokens_figure(
    runner: Runner, cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]], *, footer: str = ""
) -> bytes | None:
    """Dense and every method (its first seed) at a middling budget, on the first samples that dense answers right.

    Fixed methods, which have no budget, are left out.

    Args:
        runner: gives the pictures as the model sees them.
        cells: the whole comparison.
        contents: finished cells by id.
        footer: small print.

    Returns:
        The figure as PNG; None when the tokens of the pictures are no raster that it could draw, or no cell with a
        budget is finished.
    """
    drawn = kept_columns(runner, cells, contents, COLUMNS)
    if drawn is None:
        return None
    shown, columns = drawn
    keep = shown[-1].keep
    labels = ["all tokens", *(cell.method for cell in shown[1:])]
    explained = (
        "First question of each kind that the dense model answers right; in brackets the tokens kept; "
        f"dots: tokens pooled, none dropped; random: its first seed. {footer}"
    )
    title = "" if keep is None else f"Visual tokens kept at a budget of {show_budget(keep)}"
    return gallery(columns, labels, title=title, footer=explained)


def kept_slides(
    runner: Runner, cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]], *, count: int = SLIDES
) -> list[Slide]:
    """The same as `kept_tokens_figure` for more samples, as slides: one per sample, with a card per method.

    Args:
        runner: gives the pictures as the model sees them.
        cells: the whole comparison.
        contents: finished cells by id.
        count: at most so many slides.
    """
    drawn = kept_columns(runner, cells, contents, count)
    if drawn is None:
        return []
    shown, columns = drawn
    slides = []
    for column in columns:
        cards = []
        for cell, answer in zip(shown, column.answers, strict=True):
            everything = range(column.grid[0] * column.grid[1])
            kept = everything if answer.indices is None else answer.indices
            picture = overlay(column.picture, kept, column.grid, merged=answer.merged, side=288)
            count_text = f"{len(kept)} of {len(everything)} tokens"
            cards.append(
                Card(
                    title=repr(cell.strategy) if cell.strategy is not None else "dense",
                    picture=jpeg(picture, f"{cell.method}: {count_text}{' made' if answer.merged else ' kept'}"),
                    words=(Word(text=answer.text or "(nothing)"),),
                    lines=(count_text,),
                    tone="good" if answer.correct else "bad",
                    mark="right" if answer.correct else "wrong",
                )
            )
        slides.append(Slide(title=column.question, lines=(f"Reference: {column.reference}",), cards=cards))
    return slides


def kept_columns(
    runner: Runner, cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]], count: int
) -> tuple[list[Cell], list[Column]] | None:
    """The cells that are drawn, dense first, and the samples with an answer for each; None if nothing can be."""
    samples = runner.samples
    dense = contents[cells[0].id]
    drawable = [cell for cell in cells[1:] if cell.id in contents and cell.keep is not None]
    if not drawable:
        return None
    keep = _middling(drawable)
    shown = [cells[0]]
    for cell in drawable:
        if repr(cell.keep) == repr(keep) and cell.method not in {other.method for other in shown}:
            shown.append(cell)
    right = {cell.id: correctness(contents[cell.id], samples) for cell in shown}
    columns = []
    for place in _choose(samples, correctness(dense, samples), count):
        drawn = _picture(runner, samples[place], dense["samples"][place]["images"][0]["tokens_in"])
        if drawn is None:
            return None
        picture, grid = drawn
        answers = [_answer(cell, contents[cell.id]["samples"][place], right[cell.id][place]) for cell in shown]
        columns.append(
            Column(
                picture=picture,
                grid=grid,
                question=samples[place].question,
                reference=samples[place].answers[0],
                answers=tuple(answers),
            )
        )
    return shown, columns


def draw_kept(runner: Runner, sample: Sample, record: Mapping[str, Any], *, merged: bool) -> Pixels:
    """The first image of a sample with its kept tokens drawn in.

    Args:
        runner: gives the picture as the model sees it.
        sample: the sample.
        record: of that image: `tokens_in` and `indices`.
        merged: True when the strategy averages tokens instead of dropping them.

    Raises:
        ValueError: when the tokens of the picture are no raster.
    """
    drawn = _picture(runner, sample, record["tokens_in"])
    if drawn is None:
        raise ValueError(
            f"the {record['tokens_in']} visual tokens of this model's pictures are no raster that could be drawn"
        )
    picture, grid = drawn
    return overlay(picture, record["indices"], grid, merged=merged, side=1024)


def _middling(cells: Sequence[Cell]) -> int | float | None:
    """The budget to draw: the third of five, by falling size, is too easy for most models; take the one below."""
    budgets = list(dict.fromkeys(cell.keep for cell in cells))
    return budgets[min(len(budgets) - 1, (len(budgets) + 1) // 2)]


def _choose(samples: Sequence[Sample], right: Sequence[bool], count: int) -> list[int]:
    """The first sample of each kind that dense gets right, then further right ones, then any."""
    firsts = {samples[i].kind: i for i in reversed(range(len(samples))) if right[i]}
    order = [*sorted(firsts.values()), *(i for i in range(len(samples)) if right[i]), *range(len(samples))]
    return list(dict.fromkeys(order))[:count]


def _picture(runner: Runner, sample: Sample, tokens: int) -> tuple[Pixels, tuple[int, int]] | None:
    """The first image of a sample as the model sees it, and its raster of tokens."""
    pixels = processed(runner.loaded.processor, [sample])["pixel_values"]
    if pixels.ndim != 4 or len(pixels) != len(sample.images):  # patches in a row, or an image in several tiles
        return None
    height, width = pixels.shape[-2:]
    rows = round((tokens * height / width) ** 0.5)
    if rows < 1 or tokens % rows:
        return None
    seen = seen_picture(runner.loaded.processor, np.asarray(pixels[0].float()))
    return seen, (rows, tokens // rows)


def _answer(cell: Cell, record: Mapping[str, Any], correct: bool) -> Answer:
    indices = record["images"][0]["indices"]
    return Answer(
        text=record["answer"],
        correct=correct,
        indices=None if indices is None else tuple(indices),
        merged=cell.strategy is not None and cell.strategy.yields == "merged",
    )
