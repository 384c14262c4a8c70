"""What stands in which slot of the sequence, and the sequence that is left when visual tokens are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.models.compact import PrunedPrompt
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt import Prompt

MADE = -2
"""In place of a dense column: a token that was made inside the decoder."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """A batch of sequences inside the language model, padded on the left. Letters: b rows, k slots.

    Attributes:
        mask: bool (b, k), False on padding.
        positions: int64 (b, k), 0 on padding.
        columns: int64 (b, k), column of the dense prompt, -1 on padding, `MADE` for a token made on the way.
        lengths: number of real slots of each row, known without asking the device.
        rows: row of each image.
        slots: int64 (n,) for each image: slots of its tokens that are left, and of those made from it; ascending.
        shift: int64 (b,), how far positions of new tokens lie below those that `generate` counts; None for nowhere.
    """

    mask: Bool[Tensor, "b k"]
    positions: Int[Tensor, "b k"]
    columns: Int[Tensor, "b k"]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    slots: tuple[Int[Tensor, " _"], ...]
    shift: Int[Tensor, " b"] | None = None


class Shorter(NamedTuple):
    """A shorter sequence and where it comes from.

    Attributes:
        layout: the new layout.
        source: int64 (b, k), for each of its slots the old slot that goes there; from the old length on: new tokens of
            the row.
        anchor: int64 (b, k), the old slot whose position it has: the same, for a new token the kept one before it.
    """

    layout: Layout
    source: Int[Tensor, "b k"]
    anchor: Int[Tensor, "b k"]


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
        # With several axes the first one counts columns, as the positions behind a "compact" cut do.
        positions=(pruned.positions if pruned.positions.ndim == 2 else pruned.positions[0]) + pruned.first_position,
        columns=columns,
        lengths=tuple(lengths),
        rows=tuple(segment.row for segment in prompt.segments),
        slots=tuple(slots),
    )


def shorten(layout: Layout, kept: Sequence[Int[Tensor, " _"]], policy: Positions, made: Sequence[int] = ()) -> Shorter:
    """Drop visual tokens, and make room for new ones behind those of an image that stay. The order of the rest stays.

    Args:
        layout: the sequences.
        kept: of each image the tokens that stay, as ascending places within its `slots`.
        policy: "original": everything keeps the position that it has, and new tokens take that of the slot before them.
            "compact": positions count up from that of the row's first token.
        made: number of new tokens of each image; none where it is left out.

    Raises:
        UnsupportedError: when a row would have no token left.
    """
    made = made or [0] * len(kept)
    flags, lengths = layout.mask.clone(), list(layout.lengths)
    chosen = [slots[places] for slots, places in zip(layout.slots, kept, strict=True)]
    for row, slots, stay, new in zip(layout.rows, layout.slots, chosen, made, strict=True):
        flags[row, slots] = False
        flags[row, stay] = True
        lengths[row] += stay.shape[0] + new - slots.shape[0]
    if min(lengths) == 0:
        raise UnsupportedError("prune: a prompt of visual tokens alone would be empty; keep some, or add text")
    old, room = flags.shape[1], max(_per_row(layout.rows, made), default=0)
    # Every slot, and behind them room for the new tokens of the row, gets a key by which it is sorted; -1: not there.
    key = torch.where(flags, torch.arange(old, device=flags.device) * (room + 1), -1)
    anchor = torch.arange(old, device=flags.device).expand(flags.shape)
    if room:
        key = torch.cat([key, key.new_full((key.shape[0], room), -1)], dim=1)
        anchor = torch.cat([anchor, anchor.new_zeros((key.shape[0], room))], dim=1)
    places, used = [], dict.fromkeys(layout.rows, 0)
    for row, stay, new in zip(layout.rows, chosen, made, strict=True):
        start = old + used[row]
        used[row] += new
        if new:
            anchor[row, start : start + new] = stay[-1]
            key[row, start : start + new] = stay[-1] * (room + 1) + 1 + torch.arange(new, device=key.device)
        places.append(torch.cat([stay, torch.arange(start, start + new, device=stay.device)]))
    length, counts = max(lengths), (key >= 0).sum(1, keepdim=True)
    # A stable sort puts what is dropped first and what stays, in order, last: padding is on the left again.
    source = key.sort(dim=1, stable=True).indices[:, key.shape[1] - length :]
    anchor = anchor.gather(1, source)
    mask = torch.arange(length, device=flags.device) >= length - counts
    slot = torch.zeros_like(key).scatter(1, source, torch.arange(length, device=key.device).expand(source.shape))
    positions, shift = layout.positions.gather(1, anchor), layout.shift
    if policy == "compact":
        first = layout.positions.gather(1, layout.mask.long().argmax(1, keepdim=True))
        positions = first + mask.long().cumsum(1) - 1
        before = 0 if shift is None else shift
        shift = before + layout.positions[:, -1] - positions[:, -1]
    columns = layout.columns.gather(1, anchor).masked_fill(source >= old, MADE).masked_fill(~mask, -1)
    shortened = Layout(
        mask=mask,
        positions=positions.masked_fill(~mask, 0),
        columns=columns,
        lengths=tuple(lengths),
        rows=layout.rows,
        slots=tuple(slot[row, here] for row, here in zip(layout.rows, places, strict=True)),
        shift=shift,
    )
    return Shorter(shortened, source, anchor)


def _per_row(rows: Sequence[int], made: Sequence[int]) -> list[int]:
    return [sum(new for row, new in zip(rows, made, strict=True) if row == here) for here in sorted(set(rows))]


def made_rows(layout: Layout, made: Sequence[Float[Tensor, "_ d"]]) -> Float[Tensor, "b r d"] | None:
    """New tokens of all images, side by side per row as `Shorter.source` counts them; None when there are none.

    Args:
        layout: the sequences.
        made: new tokens of each image.
    """
    if not sum(new.shape[0] for new in made):
        return None
    nothing = made[0][:0]
    rows = [
        torch.cat([nothing, *(new for row, new in zip(layout.rows, made, strict=True) if row == here)])
        for here in range(layout.mask.shape[0])
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
