"""What a stage inside the language model can be told: which rows to read where, and how they become `Tokens` fields."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenprune.models.layout import Layout
from tokenprune.models.tap import Reader, attention_rows
from tokenprune.tokens import Tokens


def reader_for(want: Collection[str], layout: Layout, copies: int) -> Reader | None:
    """A reader for a `tap` on the layer before a cut; None when no wanted field comes from there.

    Args:
        want: names of `Tokens` fields.
        layout: what stands in the sequences that the layer gets.
        copies: rows per prompt (beams); the first of them is read, so that all share one choice.

    Returns:
        Function from queries, keys and scaling to the readings by field name, prompts first.
    """
    if "decoder_attention" not in want:
        return None
    length = layout.mask.shape[1]

    def read(query: Tensor, key: Tensor, scaling: float) -> dict[str, Tensor]:
        # A static cache hands over all its slots, also those that nothing has been written to.
        query, key = query[::copies, :, -1:].detach(), key[::copies, :, :length].detach()
        return {"decoder_attention": attention_rows(query, key, scaling, layout.mask.to(key.device))[:, :, 0]}

    return read


def fill_signals(images: Sequence[Tokens], want: Collection[str], layout: Layout, seen: Sequence[Any]) -> list[Tokens]:
    """Every image with its own part of what was read.

    Args:
        images: the visual tokens that are left.
        want: names of `Tokens` fields.
        layout: where they stand.
        seen: what the tap at the layer before read: one entry, or none when nothing was asked for.
    """
    if not seen:
        return list(images)
    reading: dict[str, Tensor] = seen[0]
    return [
        replace(tokens, **{name: SLICES[name](reading[name][row], slots) for name in want if name in SLICES})  # type: ignore[arg-type]
        for tokens, row, slots in zip(images, layout.rows, layout.slots, strict=True)
    ]


SLICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "decoder_attention": lambda rows, slots: rows[:, slots.to(rows.device)].to(slots.device),
}
"""For each field: from what was read in the image's row to the visual tokens at the given slots."""
