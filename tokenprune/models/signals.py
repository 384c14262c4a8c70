"""What a stage inside the language model can be told: what to read where, and how it becomes `Tokens` fields."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenprune.models.errors import UnsupportedError
from tokenprune.models.layout import Layout
from tokenprune.models.tap import Reader, attention_rows, tap
from tokenprune.tokens import Tokens

_BY_TAP = {
    "decoder_attention": "attention",
    "decoder_keys": "keys",
    "decoder_text_keys": "keys",
    "decoder_text_attention": "text_attention",
    "decoder_peaks": "peaks",
}
"""Fields that a tap on the layer before a cut gives, and what it reads for them."""

MID_LAYER = frozenset(_BY_TAP) | {"decoder_entered", "decoder_text"}
"""Fields that are known as soon as that layer's attention is."""


def reader_for(
    want: Collection[str],
    layout: Layout,
    copies: int,
    blocks: Int[Tensor, "b k"] | None = None,
    *,
    turn_back: Callable[[Float[Tensor, "b g k e"]], Float[Tensor, "b g k e"]] | None = None,
) -> Reader | None:
    """A reader for a `tap` on the layer before a cut; None when no wanted field comes from there.

    Args:
        want: names of `Tokens` fields.
        layout: what stands in the sequences that the layer gets.
        copies: rows per prompt (beams); the first of them is read, so that all share one choice.
        blocks: int64 (b, k), slots of equal numbers from 0 on see each other, also what stands behind; None where every
            slot sees what stands before it.
        turn_back: what is done to keys before they are read (`keys_from_first`); None leaves them as they are.

    Returns:
        Function from queries, keys and scaling to the readings by name, prompts first.
    """
    readings = {_BY_TAP[name] for name in want if name in _BY_TAP}
    if not readings:
        return None
    length = layout.mask.shape[1]

    def read(query: Tensor, key: Tensor, scaling: float) -> dict[str, Tensor]:
        # A static cache hands over all its slots, also those that nothing has been written to.
        query, key = query[::copies].detach(), key[::copies, :, :length].detach()
        mask = layout.mask.to(key.device)
        seen: dict[str, Any] = {}
        if "attention" in readings:
            seen["attention"] = attention_rows(query[:, :, -1:], key, scaling, mask)[:, :, 0]
        for image in range(len(layout.rows)) if readings & {"text_attention", "peaks"} else ():
            for name, value in _read_image(image, query, key, scaling, layout, blocks, readings).items():
                seen.setdefault(name, []).append(value)
        if "keys" in readings:
            key = key if turn_back is None else turn_back(key)
            seen["keys"] = key.transpose(1, 2).flatten(2).clone()  # a static cache writes on into its slots
        return seen

    return read


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


def _read_image(
    image: int,
    query: Tensor,
    key: Tensor,
    scaling: float,
    layout: Layout,
    blocks: Tensor | None,
    readings: Collection[str],
) -> dict[str, Tensor]:
    """Attention to one image's tokens from themselves and from the text behind."""
    row, slots = layout.rows[image], layout.slots[image].to(key.device)
    text = _text_behind(layout, row, slots).to(key.device)
    if not text.shape[0]:
        raise UnsupportedError(
            f"prune: prompt {row} has no text behind its image {layout.rows[:image].count(row)}, and a stage inside "
            "the decoder chooses by what that text attends to; put the question behind the image"
        )
    one, asking = slice(row, row + 1), torch.cat([slots, text]) if "peaks" in readings else text
    visible = torch.arange(key.shape[2], device=key.device) <= asking[:, None]
    if blocks is not None:
        block = blocks[row].to(key.device)
        visible = visible | ((block == block[asking][:, None]) & (block >= 0))
    visible = (visible & layout.mask[row].to(key.device))[None]
    rows = attention_rows(query[one][:, :, asking], key[one], scaling, visible)[0][..., slots]
    seen = {}
    if "peaks" in readings:
        strongest, n = rows.amax(0), slots.shape[0]
        seen["peaks"] = torch.stack([strongest[:n].sum(0) / n, strongest[n:].sum(0)])
    if "text_attention" in readings:
        seen["text_attention"] = rows[:, -text.shape[0] :].mean(0)
    return seen


class _StopError(Exception):
    """Queries and keys are known; the rest of the attention module is not wanted."""


def next_attention(
    layer: Any,  # noqa: ANN401
    attention: nn.Module,
    hidden: Float[Tensor, "b k d"],
    rotary: tuple[Tensor, Tensor],
    visible: Bool[Tensor, "b k"],
) -> Float[Tensor, "b h k"]:
    """Attention of the last token in a layer that has not run yet. It costs its projections; no cache is touched.

    Args:
        layer: the decoder layer.
        attention: its attention module.
        hidden: what the layer is about to get.
        rotary: its cosines and sines.
        visible: False on padding.
    """
    rows: list[Tensor] = []

    def read(query: Tensor, key: Tensor, scaling: float) -> None:
        rows.append(attention_rows(query[:, :, -1:], key, scaling, visible.to(key.device))[:, :, 0])
        raise _StopError

    with tap(attention, read), suppress(_StopError):
        attention(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=rotary,
            attention_mask=None,
            past_key_values=None,
        )
    return rows[0]


def fill_signals(
    images: Sequence[Tokens], want: Collection[str], layout: Layout, readings: Mapping[str, Any]
) -> list[Tokens]:
    """Every image with its own part of what was read.

    Args:
        images: the visual tokens that are left.
        want: names of `Tokens` fields.
        layout: where they stand.
        readings: by name. Prompts first: attention and next_attention float (b, h, k), keys float (b, k, e), states and
            hidden float (b, k, d), embeds float (b, l, d) over the columns of the dense prompt. For each image: peaks
            float (2, n), text_attention float (t, n), entered float (e, d).
    """
    wanted = [name for name in want if name in _PARTS]
    if not wanted:
        return list(images)
    filled = []
    for image, (tokens, row, slots) in enumerate(zip(images, layout.rows, layout.slots, strict=True)):
        text = _text_behind(layout, row, slots)
        places = {"image": slots, "text": text, "column": layout.columns[row, text]}
        changes = {}
        for name in wanted:
            reading, part, take = _PARTS[name]
            if part == "whole":
                changes[name] = readings[reading][image].to(tokens.visual.device)
                continue
            source = readings[reading][row]
            changes[name] = take(source, places[part].to(source.device)).to(tokens.visual.device)
        filled.append(replace(tokens, **changes))
    return filled


def _text_behind(layout: Layout, row: int, slots: Tensor) -> Tensor:
    """Slots of the row's text behind an image."""
    text = layout.mask[row].clone()
    for other, taken in zip(layout.rows, layout.slots, strict=True):
        if other == row:
            text[taken] = False
    text[: int(slots[-1])] = False
    return text.nonzero().flatten()


def _columns(rows: Tensor, slots: Tensor) -> Tensor:
    return rows[:, slots]


def _rows(rows: Tensor, slots: Tensor) -> Tensor:
    return rows[slots]


_PARTS: dict[str, tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "decoder_attention": ("attention", "image", _columns),
    "decoder_next_attention": ("next_attention", "image", _columns),
    "decoder_keys": ("keys", "image", _rows),
    "decoder_states": ("states", "image", _rows),
    "decoder_hidden": ("hidden", "image", _rows),
    "decoder_text_attention": ("text_attention", "whole", _rows),
    "decoder_peaks": ("peaks", "whole", _rows),
    "decoder_entered": ("entered", "whole", _rows),
    "decoder_text": ("embeds", "column", _rows),
    "decoder_text_keys": ("keys", "text", _rows),
    "decoder_text_states": ("states", "text", _rows),
}
"""For each field: which reading, of whose slots ("whole": it is the image's own), and how they are taken out of it."""
