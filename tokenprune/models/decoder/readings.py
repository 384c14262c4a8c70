"""What a stage inside the language model reads, brought together image by image."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenprune.core.signals import FromInputs, FromStates, Signal
from tokenprune.core.tokens import Tokens
from tokenprune.models.decoder.layout import Layout
from tokenprune.models.decoder.reader import text_after
from tokenprune.models.reading.attended import ImageEntered, ImageStates, LayerOutput
from tokenprune.models.reading.sources import in_decoder
from tokenprune.models.reading.tap import Reader, tap

Found = list[dict[Signal, Tensor]]
"""For each image what was read of it."""


def keys_from_first(
    attention: nn.Module,
    key: Float[Tensor, "b g k e"],
    rotary: tuple[Float[Tensor, "*axes _ k r"], Float[Tensor, "*axes _ k r"]],
    mask: Bool[Tensor, "b k"],
) -> Float[Tensor, "b g k e"]:
    """Rotate the keys of each row as if the row's first token had position 0.

    A model whose positions count padding rotates the keys of a padded row further. Attention does not change by that,
    but what else is computed from the keys does.

    Args:
        attention: the module that made the keys.
        key: (b, g, k, e), after rotary embedding.
        rotary: cosines and sines that they were rotated by, for b rows or one; with several axes those come first.
        mask: bool (b, k), False on padding.

    Returns:
        (b, g, k, e); rows whose first token has position 0 keep their bits.
    """
    first = mask.long().argmax(1)  # (b,)
    rows = torch.arange(first.shape[0], device=first.device)
    work = torch.promote_types(key.dtype, torch.float32)

    def at_first(part: Tensor) -> Tensor:
        part = part[0] if part.ndim > 3 else part  # all axes agree at the first token of a row
        return part.to(key.device).expand(first.shape[0], -1, -1)[rows, first][:, None, None].to(work)  # (b, 1, 1, r)

    cos, sin = map(at_first, rotary)
    turned, still = key[..., : cos.shape[-1]].to(work), key[..., cos.shape[-1] :]  # r of the e numbers are rotated
    halves: Callable[[Tensor], Tensor] = sys.modules[type(attention).__module__].rotate_half
    # Some models scale cosines and sines; the keys have that scale already.
    back = (turned * cos - halves(turned) * sin) / (cos.square() + sin.square()).sqrt()
    return torch.cat([torch.where(sin == 0, turned, back).to(key.dtype), still], dim=-1)


class _StopError(Exception):
    """Queries and keys are known; the rest of the attention module is not wanted."""


def next_attention(
    layer: Any,  # noqa: ANN401
    attention: nn.Module,
    hidden: Float[Tensor, "b k d"],
    rotary: tuple[Tensor, Tensor],
    reader: Reader,
) -> Found:
    """Read a layer that has not run yet. It costs its projections; no cache is touched.

    Args:
        layer: the decoder layer.
        attention: its attention module.
        hidden: what the layer is about to get.
        rotary: its cosines and sines.
        reader: from `decoder_reader`.
    """
    found: list[Found] = []

    def read(query: Tensor, key: Tensor, scaling: float) -> None:
        found.append(reader(query, key, scaling))
        raise _StopError

    with tap(attention, read), suppress(_StopError):
        attention(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=rotary,
            attention_mask=None,
            past_key_values=None,
        )
    return found[0]


def read_states(signals: Sequence[Signal], layout: Layout, output: LayerOutput) -> Found:
    """Read the output of the layer before a stage.

    Args:
        signals: those with a `FromStates` source are read.
        layout: which token is in which slot.
        output: of all prompts.
    """
    device = output.hidden.device
    found: Found = []
    for row, slots, text in zip(layout.rows, layout.slots, text_after(layout), strict=True):
        view = ImageStates(output, row, slots.to(device), text.to(device))
        found.append({s: s.source.read(view) for s in signals if isinstance(s.source, FromStates)})
    return found


def read_inputs(
    signals: Sequence[Signal], layout: Layout, entered: Sequence[Tensor], embeds: Float[Tensor, "b l d"]
) -> Found:
    """Read what entered the language model.

    Args:
        signals: those with a `FromInputs` source are read.
        layout: which token is in which slot.
        entered: float (o, d) for each image, its tokens that entered.
        embeds: embeddings of the dense prompt's columns.
    """
    found: Found = []
    for image, row, text in zip(entered, layout.rows, text_after(layout), strict=True):
        columns = layout.columns[row, text].to(embeds.device)
        view = ImageEntered(image, embeds[row, columns])
        found.append({s: s.source.read(view) for s in signals if isinstance(s.source, FromInputs)})
    return found


def with_readings(images: Sequence[Tokens], *found: Found) -> list[Tokens]:
    """Every image with what was read of it, on its own device."""
    known = []
    for i, tokens in enumerate(images):
        values = {signal: value for part in found if part for signal, value in part[i].items()}
        device = tokens.visual.device
        here = {signal: value.to(device) for signal, value in values.items()}
        known.append(tokens.knowing(here) if here else tokens)
    return known


def without_readings(images: Sequence[Tokens], signals: Sequence[Signal]) -> list[Tokens]:
    """Every image without what was read inside the language model: it is about one layer."""
    gone = {signal: None for signal in signals if in_decoder(signal)}
    return [tokens.knowing(gone) for tokens in images]
