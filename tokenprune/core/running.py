"""Running stages one after another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from tokenprune.core.checks import Yields
from tokenprune.core.places import InTower, Place
from tokenprune.core.selection import Selection, StageCount
from tokenprune.core.signals import TOWER_SIZE
from tokenprune.core.tokens import Tokens


@runtime_checkable
class Runnable(Protocol):
    """The parts of `Stage`, whose module is above this one, that running takes."""

    @property
    def place(self) -> Place:
        """Where it acts."""

    @property
    def yields(self) -> Yields:
        """What it leaves."""

    def select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Check the images and choose."""

    def run(self, batch: Sequence[Tokens]) -> list[Selection]:
        """Choose for images that are known to be sound."""


def run_stages(stages: Sequence[Runnable], batch: Sequence[Tokens]) -> list[Selection]:
    """Run stages one after another on several images; indices refer to the rows of the images given.

    The images must be sound, as they are inside `select_batch`: only tokens that a stage made are looked at again.
    """
    current, rows = list(batch), [tokens.positions[:0] for tokens in batch]
    orders: list[Tensor | None] = [None] * len(batch)
    traces: list[list[StageCount]] = [[] for _ in batch]
    merged = extended = False
    selections: list[Selection] = []
    for number, stage in enumerate(stages):
        selections = stage.select_batch(current) if merged else stage.run(current)
        text, merges = repr(stage), stage.yields == "merged"
        for i, selection in enumerate(selections):
            made = 0 if selection.extra is None else selection.extra.shape[0]
            traces[i].append(StageCount(stage=text, tokens_in=current[i].n, tokens_out=selection.kept, made=made))
            # The order in rows of the image that came in: rows[i] are those that this stage got.
            orders[i] = selection.order if number == 0 or selection.order is None else rows[i][selection.order]
            rows[i] = selection.indices if number == 0 else rows[i][selection.indices]  # (k,)
            # There is no sequence outside a model, so later stages do not see the `extra` tokens.
            if stage.yields != "nothing" and (stage is not stages[-1] or merged or merges):
                current[i] = _after(stage, current[i], selection)
        merged, extended = merged or merges, extended or stage.yields == "extended"
    return [
        Selection(
            indices=rows[i],
            total=batch[i].n,
            order=orders[i],
            scores=last.scores if len(stages) == 1 else None,
            features=current[i].visual[: rows[i].shape[0]] if merged else None,
            extra=(current[i].visual[:0] if last.extra is None else last.extra) if extended else None,
            sizes=_sizes(last, current[i]),
            stages=tuple(traces[i]),
        )
        for i, last in enumerate(selections)
    ]


def _after(stage: Runnable, tokens: Tokens, selection: Selection) -> Tokens:
    """The image as the next stage gets it."""
    if isinstance(stage.place, InTower) and selection.features is not None:
        # Signals are read after the merging, so they are those of the merged tokens.
        return replace(tokens.take_sound(selection.indices), visual=selection.features)
    return tokens.take_sound(selection.indices, features=selection.features)


def _sizes(last: Selection, tokens: Tokens) -> Tensor | None:
    known = tokens[TOWER_SIZE]
    return last.sizes if known is None else known[0]
