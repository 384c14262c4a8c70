"""What stands in which slot of the sequence, and the sequence that is left when visual tokens are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.prompt import Prompt
from tokenprune.strategy import PositionPolicy
from tokenprune.tokens import Selection


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """A batch of sequences inside the language model, padded on the left. Letters: b rows, k slots.

    Attributes:
        mask: bool (b, k), False on padding.
        positions: int64 (b, k), 0 on padding.
        columns: int64 (b, k), column of the dense prompt, -1 on padding.
        lengths: number of real slots of each row, known without asking the device.
        rows: row of each image.
        slots: int64 (n,) for each image: slots of the visual tokens that are left, ascending.
        shift: int64 (b,), how far positions of new tokens lie below those that `generate` counts; None for nowhere.
    """

    mask: Bool[Tensor, "b k"]
    positions: Int[Tensor, "b k"]
    columns: Int[Tensor, "b k"]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    slots: tuple[Int[Tensor, " _"], ...]
    shift: Int[Tensor, " b"] | None = None


def entering(prompt: Prompt, pruned: PrunedPrompt, selections: Sequence[Selection]) -> Layout:
    """The layout of what enters the language model.

    Args:
        prompt: the dense prompt.
        pruned: what was made of it, padded on the left.
        selections: what was kept of each image.
    """
    columns = pruned.columns
    slot = torch.zeros_like(prompt.ids)
    real = columns >= 0
    rows = torch.arange(columns.shape[0], device=columns.device)[:, None].expand(columns.shape)
    slot[rows[real], columns[real]] = torch.arange(columns.shape[1], device=columns.device).expand(columns.shape)[real]
    lengths = [text.shape[0] for text in prompt.text]
    slots = []
    for segment, selection in zip(prompt.segments, selections, strict=True):
        lengths[segment.row] += selection.kept
        slots.append(slot[segment.row, segment.columns[selection.indices.to(slot.device)]])
    return Layout(
        mask=pruned.mask.bool(),
        positions=pruned.positions,
        columns=columns,
        lengths=tuple(lengths),
        rows=tuple(segment.row for segment in prompt.segments),
        slots=tuple(slots),
    )


def shorten(
    layout: Layout, kept: Sequence[Int[Tensor, " _"]], policy: PositionPolicy
) -> tuple[Layout, Int[Tensor, "b r"]]:
    """Drop visual tokens. The order of what is left stays.

    Args:
        layout: the sequences.
        kept: of each image the tokens that stay, as ascending places within its `slots`.
        policy: "original": everything keeps the position that it has. "compact": positions count up from that of the
            row's first token.

    Returns:
        The new layout, and for each of its slots the old slot that goes there.
    """
    flags, lengths = layout.mask.clone(), list(layout.lengths)
    chosen = [slots[places] for slots, places in zip(layout.slots, kept, strict=True)]
    for row, slots, stay in zip(layout.rows, layout.slots, chosen, strict=True):
        flags[row, slots] = False
        flags[row, stay] = True
        lengths[row] -= slots.shape[0] - stay.shape[0]
    length, counts = max(lengths), flags.sum(1, keepdim=True)
    # A stable sort puts what is dropped first and what stays, in order, last: padding is on the left again.
    source = flags.to(torch.int8).sort(dim=1, stable=True).indices[:, flags.shape[1] - length :]
    mask = torch.arange(length, device=flags.device) >= length - counts
    place = flags.long().cumsum(1) - 1 + length - counts
    positions, shift = layout.positions.gather(1, source), layout.shift
    if policy == "compact":
        first = layout.positions.gather(1, layout.mask.long().argmax(1, keepdim=True))
        positions = first + mask.long().cumsum(1) - 1
        before = 0 if shift is None else shift
        shift = before + layout.positions[:, -1] - positions[:, -1]
    shortened = Layout(
        mask=mask,
        positions=positions.masked_fill(~mask, 0),
        columns=layout.columns.gather(1, source).masked_fill(~mask, -1),
        lengths=tuple(lengths),
        rows=layout.rows,
        slots=tuple(place[row, stay] for row, stay in zip(layout.rows, chosen, strict=True)),
        shift=shift,
    )
    return shortened, source
