"""One attention module at work, seen image by image: what signals of the decoder are computed from."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.core.signals import FromDecoder, Signal
from tokenprune.models.layout import Layout
from tokenprune.models.tap import Reader, attention_rows


class Module:
    """Queries and keys of one call of an attention module, for all prompts of a batch.

    Letters: b prompts, h query heads, g key heads, k slots, e width of a head.

    Args:
        query: float (b, h, k, e), after rotary embedding.
        key: float (b, g, k, e), likewise, before grouped keys are repeated.
        scaling: factor on the inner products.
        mask: bool (b, k), False on padding.
        blocks: int64 (b, k), slots of equal numbers from 0 on see each other, also what comes after; None where every
            slot sees what comes before it.
    """

    def __init__(
        self,
        query: Float[Tensor, "b h k e"],
        key: Float[Tensor, "b g k e"],
        scaling: float,
        mask: Bool[Tensor, "b k"],
        blocks: Int[Tensor, "b k"] | None = None,
    ) -> None:
        self.query = query
        self.key = key
        self.scaling = scaling
        self.mask = mask
        self.blocks = blocks

    @cached_property
    def last_rows(self) -> Float[Tensor, "b h k"]:
        """Attention of every prompt's last token to all slots, computed for the whole batch at once."""
        return attention_rows(self.query[:, :, -1:], self.key, self.scaling, self.mask)[:, :, 0]

    def image(self, row: int, image: Int[Tensor, " n"], text: Int[Tensor, " t"]) -> "ImageAttention":
        """One image's view: it is in prompt `row`, at slots `image`, with its text at slots `text`."""
        return ImageAttention(self, row, image, text)


class ImageAttention:
    """`core.signals.Attended` for one image in the language model."""

    def __init__(self, module: Module, row: int, image: Int[Tensor, " n"], text: Int[Tensor, " t"]) -> None:
        self.module = module
        self.row = row
        self.image = image
        self.text = text
        self.last = torch.tensor([module.query.shape[2] - 1])
        self._rows: list[tuple[Tensor, Tensor]] = []

    @property
    def keys(self) -> Float[Tensor, "g k e"]:
        """Keys after rotary embedding."""
        return self.module.key[self.row]

    @property
    def queries(self) -> Float[Tensor, "h k e"]:
        """Queries after rotary embedding."""
        return self.module.query[self.row]

    def rows(self, of: Int[Tensor, " q"]) -> Float[Tensor, "h q n"]:
        """Attention from the given slots to the image, softmaxed over all that they see, in float32."""
        if of is self.last:  # once for the whole batch: that is what one image alone costs
            return self.module.last_rows[self.row][:, None, self.image]
        for slots, found in self._rows:  # two signals may ask for the same rows
            if slots is of:
                return found
        module, one = self.module, slice(self.row, self.row + 1)
        visible = torch.arange(module.key.shape[2], device=of.device) <= of[:, None]  # (q, k)
        if module.blocks is not None:
            block = module.blocks[self.row]
            visible = visible | ((block == block[of][:, None]) & (block >= 0))
        visible = (visible & module.mask[self.row])[None]
        found = attention_rows(module.query[one][:, :, of], module.key[one], module.scaling, visible)[0]
        found = found[..., self.image]  # (h, q, n)
        self._rows.append((of, found))
        return found


def attention_reader(
    signals: Sequence[Signal],
    layout: Layout,
    texts: Sequence[Int[Tensor, " _"]],
    copies: int = 1,
    blocks: Int[Tensor, "b k"] | None = None,
) -> Reader:
    """Make a reader for a `tap` on a decoder layer, which gives every image its signals.

    Args:
        signals: with a `FromDecoder` source.
        layout: which token is in which slot of the sequences that the layer gets.
        texts: for each image the slots of the text after it.
        copies: rows per prompt (beams); the first of them is read, so that all share one choice.
        blocks: see `Module`.

    Returns:
        Function from queries, keys and scaling to a dict by signal for each image.
    """
    reads: list[tuple[Signal, Callable[[Any], Tensor]]] = [
        (signal, signal.source.read) for signal in signals if isinstance(signal.source, FromDecoder)
    ]

    def read(query: Tensor, key: Tensor, scaling: float) -> list[dict[Signal, Tensor]]:
        # A static cache hands over all its slots, also those that nothing has been written to.
        query, key = query[::copies].detach(), key[::copies, :, : layout.mask.shape[1]].detach()
        device = key.device
        module = Module(query, key, scaling, layout.mask.to(device), None if blocks is None else blocks.to(device))
        views = [
            module.image(row, slots.to(device), text.to(device))
            for row, slots, text in zip(layout.rows, layout.slots, texts, strict=True)
        ]
        return [{signal: compute(view) for signal, compute in reads} for view in views]

    return read
