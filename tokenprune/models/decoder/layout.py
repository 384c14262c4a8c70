"""What stands in which slot of the sequence, and the sequence that is left when visual tokens are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.core.places import Positions
from tokenprune.core.selection import Selection
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.prompt.dense import Prompt
from tokenprune.models.prompt.places import Places
from tokenprune.models.prompt.pruned import PrunedPrompt

MADE = -2
"""In place of a dense column: a token that was made inside the decoder."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """A batch of sequences inside the language model, padded on the left. Letters: b rows, k slots.

    Attributes:
        mask: bool (b, k), False on padding.
        positions: int64 (b, k) or (axes, b, k), those that feed the rotary embedding, 0 on padding.
        following: int64 (b,) or (axes, b), position of the first generated token.
        columns: int64 (b, k), column of the dense prompt, -1 on padding, `MADE` for a token made on the way.
        room: int64 (b, k), column of the dense prompt whose position decides where the slot goes when gaps are closed:
            with several axes the token's own, with one axis the columns that are left in their order; for a token made
            on the way that of the token after which it was put.
        lengths: number of real slots of each row, known without asking the device.
        rows: row of each image.
        slots: int64 (n,) for each image: slots of its tokens that are left, and of those made from it; ascending.
        places: positions of the dense prompt.
        first_position: what they are counted from.
        closed: whether no tokens were dropped without closing the gap in the positions.
        moved: whether positions differ from those that entered the language model.
    """

    mask: Bool[Tensor, "b k"]
    positions: Int[Tensor, "*axes b k"]
    following: Int[Tensor, "*axes b"]
    columns: Int[Tensor, "b k"]
    room: Int[Tensor, "b k"]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    slots: tuple[Int[Tensor, " _"], ...]
    places: Places
    first_position: int = 0
    closed: bool = True
    moved: bool = False


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
    positions, following, room = pruned.positions, pruned.next_position, columns.sort(dim=1).values
    if positions.ndim > 2:
        positions, following, room = positions[prompt.counting_axes :], following[prompt.counting_axes :], columns
    return Layout(
        mask=pruned.mask.bool(),
        positions=positions + pruned.first_position,
        following=following + pruned.first_position,
        columns=columns,
        room=room.clamp_min(0),
        lengths=tuple(lengths),
        rows=tuple(segment.row for segment in prompt.segments),
        slots=tuple(slots),
        places=prompt.places,
        first_position=pruned.first_position,
        closed=pruned.policy == "compact",
    )


def shorten(layout: Layout, kept: Sequence[Int[Tensor, " _"]], policy: Positions, made: Sequence[int] = ()) -> Shorter:
    """Drop visual tokens, and make room for new ones behind those of an image that stay. The order of the rest stays.

    Args:
        layout: the sequences.
        kept: of each image the tokens that stay, as ascending places within its `slots`.
        policy: "original": everything keeps the position that it has, and new tokens take that of the slot before them.
            "compact": gaps are closed, by the rule of `tokenprune.models.prompt.places`.
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
    columns = layout.columns.gather(1, anchor).masked_fill(source >= old, MADE).masked_fill(~mask, -1)
    rooms = layout.room.gather(1, anchor)
    positions = layout.positions.gather(-1, anchor.expand(*layout.positions.shape[:-2], -1, -1))
    positions, following = positions.masked_fill(~mask, 0), layout.following
    if policy == "compact":
        positions, following = _without_gaps(layout, columns, rooms)
    shortened = Layout(
        mask=mask,
        positions=positions,
        following=following,
        columns=columns,
        room=rooms,
        lengths=tuple(lengths),
        rows=layout.rows,
        slots=tuple(slot[row, here] for row, here in zip(layout.rows, places, strict=True)),
        places=layout.places,
        first_position=layout.first_position,
        closed=policy == "compact",
        moved=layout.moved or policy == "compact",
    )
    return Shorter(shortened, source, anchor)


def _without_gaps(layout: Layout, columns: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of slots with these columns and rooms when gaps are closed, and of the first token after them."""
    made, own = columns == MADE, columns >= 0  # (b, k)
    length = layout.places.mask.shape[1]
    kept = torch.zeros_like(layout.places.image).scatter_reduce(1, room, own.long(), "amax").bool()  # (b, l)
    number = torch.zeros_like(layout.places.image).scatter_add(1, room, made.long())  # (b, l)
    closed = layout.places.close(kept, number)
    positions = closed.positions.gather(-1, room.expand(len(closed.positions), -1, -1))
    # Made tokens of one image are side by side: the number within the image is that in the row less those before it.
    runs = layout.places.runs
    counts = number.new_zeros((len(number), length + 1)).scatter_add(1, runs, number)
    before = (counts.cumsum(1) - counts).gather(1, runs.gather(1, room))
    new = closed.made.gather(1, room) + made.long().cumsum(1) - 1 - before
    positions = torch.where(made, new, positions).masked_fill(~(made | own), 0) + layout.first_position
    following = closed.following + layout.first_position
    return (positions, following) if layout.positions.ndim > 2 else (positions[0], following[0])


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
