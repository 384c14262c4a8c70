"""Attention modules, layer outputs and inputs of a model, seen image by image: what signals are computed from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenprune.core.signals import FromProjector, FromTower, Signal
from tokenprune.models.errors import UnsupportedError
from tokenprune.models.reading.tap import Reader, attention_rows

TurnBack = Callable[[Tensor], Tensor]
"""From keys (b, g, k, e) to those that signals see."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Module:
    """Queries and keys of one call of an attention module, for all rows of a batch.

    Letters: b rows (prompts, or images of a tower), h query heads, g key heads, k slots, e width of a head.

    Attributes:
        query: float (b, h, k, e), after rotary embedding.
        key: float (b, g, k, e), likewise, before grouped keys are repeated.
        scaling: factor on the inner products.
        last: the slot whose row of attention is shared: the prompt's last token, a tower's CLS token.
        causal: True where a slot sees what comes before it, False where it sees everything.
        mask: bool (b, k), False on padding; None for no padding.
        blocks: int64 (b, k), slots of equal numbers from 0 on see each other, also what comes after.
        turn_back: what is done to keys before signals see them; None leaves them as they are. Attention is never
            computed from these.
    """

    query: Float[Tensor, "b h k e"]
    key: Float[Tensor, "b g k e"]
    scaling: float
    last: Int[Tensor, " 1"]
    causal: bool
    mask: Bool[Tensor, "b k"] | None = None
    blocks: Int[Tensor, "b k"] | None = None
    turn_back: TurnBack | None = None

    @cached_property
    def plain_key(self) -> Float[Tensor, "b g k e"]:
        """Keys as signals see them."""
        return self.key if self.turn_back is None else self.turn_back(self.key)

    @cached_property
    def last_rows(self) -> Float[Tensor, "b h k"]:
        """Attention from the slot `last` to all slots, computed for the whole batch at once."""
        query, key = self.query.detach(), self.key.detach()
        return attention_rows(query[:, :, self.last], key, self.scaling, self.mask)[:, :, 0]

    def visible(self, row: int, of: Int[Tensor, " q"]) -> Bool[Tensor, "1 q k"] | None:
        """What the given slots of a row see; None for everything."""
        if not self.causal:
            return None
        seen = torch.arange(self.key.shape[2], device=of.device) <= of[:, None]  # (q, k)
        if self.blocks is not None:
            block = self.blocks[row]
            seen = seen | ((block == block[of][:, None]) & (block >= 0))
        return (seen if self.mask is None else seen & self.mask[row])[None]


class ImageAttention:
    """`core.signals.Attended` for one image.

    Args:
        module: the module at work.
        row: the batch's row that the image is in.
        image: int64 (n,), slots of its tokens.
        text: int64 (t,), slots of the text after it.
        place: how errors say that there is no text after it.
    """

    def __init__(
        self, module: Module, row: int, image: Int[Tensor, " n"], text: Int[Tensor, " t"], place: str = ""
    ) -> None:
        self.module = module
        self.row = row
        self.image = image
        self.text = text
        self.last = module.last
        self.place = place
        self._rows: list[tuple[Tensor, Tensor]] = []

    @property
    def keys(self) -> Float[Tensor, "g k e"]:
        """Keys after rotary embedding, in a decoder as if the row's first token had position 0."""
        return self.module.plain_key[self.row]

    @property
    def queries(self) -> Float[Tensor, "h k e"]:
        """Queries after rotary embedding."""
        return self.module.query[self.row]

    def rows(self, of: Int[Tensor, " q"]) -> Float[Tensor, "h q n"]:
        """Attention from the given slots to the image, softmaxed over all that they see, in float32.

        Raises:
            UnsupportedError: for other slots than the last in a prompt without text after the image.
        """
        module, one = self.module, slice(self.row, self.row + 1)
        if of is self.last:  # once for the whole batch: that is what one image alone costs
            return module.last_rows[self.row][:, None, self.image]
        if module.causal and not self.text.shape[0]:
            raise UnsupportedError(
                f"prune: {self.place}, and a stage inside the decoder chooses by what that text "
                "attends to; put the question after the image"
            )
        for slots, found in self._rows:  # two signals may ask for the same rows
            if slots is of:
                return found
        query, key = module.query[one].detach(), module.key[one].detach()  # attention is read as plain numbers
        found = attention_rows(query[:, :, of], key, module.scaling, module.visible(self.row, of))
        self._rows.append((of, found[0][..., self.image]))  # (h, q, n)
        return self._rows[-1][1]


@dataclass(eq=False)
class ImageRows:
    """`core.signals.TowerRows` for one image."""

    image: Int[Tensor, " n"]
    last: Int[Tensor, " 1"]
    states: Float[Tensor, "k c"]


@dataclass(eq=False)
class ImageEntered:
    """`core.signals.Entered` for one image."""

    image: Float[Tensor, "o d"]
    text: Float[Tensor, "t d"]


class LayerOutput:
    """Output of a decoder layer for all prompts; the final norm runs once, when a signal wants it."""

    def __init__(self, hidden: Float[Tensor, "b k d"], norm: nn.Module) -> None:
        self.hidden = hidden
        self.norm = norm

    @cached_property
    def normed(self) -> Float[Tensor, "b k d"]:
        """The output after the language model's final norm."""
        normed: Tensor = self.norm(self.hidden)
        return normed


@dataclass(eq=False)
class ImageStates:
    """`core.signals.States` for one image."""

    output: LayerOutput
    row: int
    image: Int[Tensor, " n"]
    text: Int[Tensor, " t"]

    @property
    def hidden(self) -> Float[Tensor, "k d"]:
        """The output as it is."""
        return self.output.hidden[self.row]

    @property
    def normed(self) -> Float[Tensor, "k d"]:
        """The output after the language model's final norm."""
        return self.output.normed[self.row]


def tower_reader(signals: Sequence[Signal], prefix: int) -> Reader:
    """Make a reader for a `tap` on a vision tower; slot 0 of the tower is taken for the CLS token.

    Args:
        signals: with a `FromTower` source.
        prefix: number of leading rows that are no visual tokens (1 for a dropped CLS token).

    Attention is read as plain numbers. Keys and queries stay connected to the tower: methods that weigh tokens by them
    can be trained through them. Nothing is computed during the tower's run, where autograd would have to remember it,
    so that a layer that is computed again in the backward pass (gradient checkpointing) is the same without the reader.

    Returns:
        Function from queries, keys and scaling to a function without arguments, which gives a list by signal, an entry
        per image; call it after the tower has run.
    """

    def read(query: Tensor, key: Tensor, scaling: float) -> Callable[[], dict[Signal, list[Tensor]]]:
        def values() -> dict[Signal, list[Tensor]]:
            first = torch.zeros(1, dtype=torch.int64, device=key.device)
            module = Module(query=query, key=key, scaling=scaling, last=first, causal=False)
            slots = torch.arange(prefix, key.shape[2], device=key.device)
            views = [ImageAttention(module, row, slots, slots[:0]) for row in range(key.shape[0])]
            return {signal: [read_signal(signal, FromTower)(view) for view in views] for signal in signals}

        return values

    return read


def read_rows(signals: Sequence[Signal], states: Float[Tensor, "b p c"], crop: int) -> dict[Signal, tuple[Tensor, ...]]:
    """Read what the projector gets from the vision tower.

    Args:
        signals: with a `FromProjector` source.
        states: the rows, those included that are cut off before the projector.
        crop: how many of them are cut off in front; the first of these is the CLS token.
    """
    slots = torch.arange(crop, states.shape[1], device=states.device)
    first = torch.zeros(1, dtype=torch.int64, device=states.device)
    views = [ImageRows(slots, first, rows) for rows in states]
    return {signal: tuple(read_signal(signal, FromProjector)(view) for view in views) for signal in signals}


def read_signal(signal: Signal, kind: type[Any]) -> Callable[[Any], Tensor]:
    """Give the function by which a signal is read from a source of this kind."""
    if not isinstance(signal.source, kind):
        raise TypeError(f"{signal} is not read {kind.__name__}")
    read: Callable[[Any], Tensor] = signal.source.read
    return read


def own(value: Tensor, key: Tensor) -> Tensor:
    """Copy a value that is a view of the keys; anything else is handed back as it is."""
    shared = value.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
    return value.clone() if shared else value
