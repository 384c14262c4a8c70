"""What every image is given of a decoder layer's attention."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.core.signals import FromDecoder, Signal
from tokenprune.models.decoder.layout import Layout
from tokenprune.models.reading.attended import ImageAttention, Module, TurnBack, own, read_signal
from tokenprune.models.reading.tap import Reader


def text_after(layout: Layout) -> list[Int[Tensor, " _"]]:
    """For each image the slots of its row's text after it."""
    found = []
    for row, slots in zip(layout.rows, layout.slots, strict=True):
        text = layout.mask[row].clone()  # (k,)
        for other, taken in zip(layout.rows, layout.slots, strict=True):
            if other == row:
                text[taken] = False
        text[: int(slots[-1])] = False
        found.append(text.nonzero().flatten())
    return found


def decoder_reader(
    signals: Sequence[Signal],
    layout: Layout,
    copies: int = 1,
    blocks: Int[Tensor, "b k"] | None = None,
    *,
    turn_back: TurnBack | None = None,
) -> Reader | None:
    """Make a reader for a `tap` on a decoder layer, which gives every image its signals.

    Args:
        signals: with a `FromDecoder` source.
        layout: which token is in which slot of the sequences that the layer gets.
        copies: rows per prompt (beams); the first of them is read, so that all share one choice.
        blocks: see `Module`.
        turn_back: see `Module`; `signals.keys_from_first`.

    Returns:
        Function from queries, keys and scaling to a dict by signal for each image; None when there is no signal.
    """
    if not signals:
        return None

    def read(query: Tensor, key: Tensor, scaling: float) -> list[dict[Signal, Tensor]]:
        length, device = layout.mask.shape[1], key.device
        # A static cache hands over all its slots, also those that nothing has been written to.
        module = Module(
            query=query[::copies].detach(),
            key=key[::copies, :, :length].detach(),
            scaling=scaling,
            last=torch.tensor([query.shape[2] - 1], device=device),
            causal=True,
            mask=layout.mask.to(device),
            blocks=None if blocks is None else blocks.to(device),
            turn_back=turn_back,
        )
        found = []
        for i, (row, slots, text) in enumerate(zip(layout.rows, layout.slots, text_after(layout), strict=True)):
            place = f"prompt {row} has no text after its image {layout.rows[:i].count(row)}"
            view = ImageAttention(module, row, slots.to(device), text.to(device), place)
            # A static cache writes on into its slots, so nothing may be a view of them.
            found.append({signal: own(read_signal(signal, FromDecoder)(view), key) for signal in signals})
        return found

    return read
