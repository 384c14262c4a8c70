"""Floating-point operations by formula, with the convention spelled out, per stage and from per-layer token counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenprune.evaluate.cost.shapes import DecoderShape, TowerShape
from tokenprune.models.record import CallRecord

Causal = Literal["half", "full"]
CONVENTION = (
    "2 FLOPs per multiply-accumulate; matrix products, convolution and attention only (no norms, softmax, activations, "
    "rotary embedding); gated MLP with its three matrices; visual, text and padding tokens; of the causal attention "
    "matrix the half with its diagonal, which is what is needed (a kernel that computes all of it does more); logits "
    "of the last position only; every layer of the vision tower that the library runs"
)
"""What every figure of this module counts."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one batch by stage; see `CONVENTION`.

    Attributes:
        tower: the vision tower.
        projector: from the tower to visual tokens.
        layers: weight matrices of the decoder layers over the prompt.
        attention: attention of the decoder layers over the prompt.
        head: logits of the first new token.
    """

    tower: int
    projector: int
    layers: int
    attention: int
    head: int

    @property
    def prefill(self) -> int:
        """What the language model does until the first token."""
        return self.layers + self.attention + self.head

    @property
    def total(self) -> int:
        """With the vision side."""
        return self.tower + self.projector + self.prefill


def tower_flops(shape: TowerShape, pictures: int, tokens: Sequence[int] | None = None) -> int:
    """The vision tower.

    Args:
        shape: its sizes.
        pictures: how many go through it (tiles count one each).
        tokens: rows that enter each layer; None for all of them everywhere. Merging inside the tower lowers them.

    Raises:
        ValueError: when `tokens` has not one entry per layer.
    """
    entering = [shape.patches + shape.prefix] * shape.layers if tokens is None else list(tokens)
    if len(entering) != shape.layers:
        raise ValueError(f"tower_flops: tokens must have {shape.layers} entries, one per layer, got {len(entering)}")
    embedding = shape.patches * shape.width * shape.channels * shape.patch**2
    matrices = 4 * shape.width**2 + 2 * shape.width * shape.inner
    return 2 * pictures * (embedding + sum(n * matrices + 2 * n * n * shape.width for n in entering))


def projector_flops(shape: TowerShape, tokens: int) -> int:
    """The projector over so many visual tokens."""
    return 2 * tokens * (shape.features * shape.out + shape.out**2)


def layer_flops(shape: DecoderShape, length: int, *, rows: int = 1) -> int:
    """Weight matrices of one decoder layer over `rows` sequences of `length` tokens."""
    return 2 * rows * length * shape.matrix


def attention_flops(shape: DecoderShape, length: int, *, rows: int = 1, past: int = 0, causal: Causal = "half") -> int:
    """Scores and weighted values of one decoder layer.

    Args:
        shape: sizes; grouped queries compute as many scores as plain ones.
        length: new tokens.
        rows: sequences.
        past: tokens already in the cache; every new token sees all of them.
        causal: "half" counts the pairs that the mask leaves, length (length + 1) / 2; "full" all length x length, which
            is what torch's counter counts and what a kernel without a causal mode does.
    """
    pairs = length * length if causal == "full" else length * (length + 1) // 2
    return 2 * 2 * rows * shape.heads * shape.head * (pairs + length * past)


def prefill_flops(
    decoder: DecoderShape,
    lengths: Sequence[int],
    *,
    rows: int = 1,
    tower: TowerShape | None = None,
    pictures: int = 0,
    visual: int | None = None,
    causal: Causal = "half",
) -> Flops:
    """From pixels to the first token.

    Args:
        decoder: the language model.
        lengths: columns (text, visual tokens that were kept, padding) that enter each decoder layer; see
            `layer_lengths`.
        rows: sequences.
        tower: the vision side; None leaves it out.
        pictures: that go through the tower.
        visual: visual tokens that go through the projector; None for all patches of all pictures.
        causal: see `attention_flops`.

    Raises:
        ValueError: when `lengths` has not one entry per layer.

    Examples:
        >>> llava_7b = DecoderShape(
        ...     layers=32, width=4096, inner=11008, heads=32, kv_heads=32, head=128, vocabulary=32064
        ... )
        >>> [round(prefill_flops(llava_7b, [n + 64] * 32).prefill / 1e12, 2) for n in (576, 192, 128, 64)]
        [8.4, 3.33, 2.5, 1.66]
    """
    if len(lengths) != decoder.layers:
        raise ValueError(
            f"prefill_flops: lengths must have {decoder.layers} entries, as many as layers, got {len(lengths)}"
        )
    through = (pictures * tower.patches if visual is None else visual) if tower is not None else 0
    return Flops(
        tower=0 if tower is None else tower_flops(tower, pictures),
        projector=0 if tower is None else projector_flops(tower, through),
        layers=sum(layer_flops(decoder, length, rows=rows) for length in lengths),
        attention=sum(attention_flops(decoder, length, rows=rows, causal=causal) for length in lengths),
        head=2 * rows * decoder.width * decoder.vocabulary,
    )


def decode_flops(decoder: DecoderShape, lengths: Sequence[int], *, rows: int = 1) -> int:
    """One further token per sequence, with so many tokens in each layer's cache, itself not among them."""
    layers = sum(layer_flops(decoder, 1, rows=rows) + attention_flops(decoder, 1, rows=rows, past=n) for n in lengths)
    return layers + 2 * rows * decoder.width * decoder.vocabulary


def layer_lengths(call: CallRecord, layers: int) -> tuple[int, ...]:
    """Columns that entered each decoder layer in a recorded call, padding included.

    Args:
        call: from `Record.calls`; methods inside the decoder tell the visual tokens of every layer there.
        layers: decoder layers of the model.
    """
    if call.columns is None or not any(image.layer_tokens for image in call.images):
        return (call.columns_kept,) * layers
    text = (call.columns >= 0).sum(1).tolist()
    for image in call.images:
        text[image.prompt] -= image.tokens_kept
    return padded_lengths(text, [image.prompt for image in call.images], [image.layer_tokens for image in call.images])


def padded_lengths(text: Sequence[int], rows: Sequence[int], layer_tokens: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Columns that enter each decoder layer when the longest sequence sets the length of all.

    Args:
        text: text tokens of each sequence.
        rows: for each image, its sequence.
        layer_tokens: for each image, its visual tokens entering each layer.

    Examples:
        >>> padded_lengths([5, 9], [0, 1], [(16, 4), (8, 8)])
        (21, 17)
    """
    lengths = []
    for counts in zip(*layer_tokens, strict=True):
        filled = list(text)
        for row, count in zip(rows, counts, strict=True):
            filled[row] += count
        lengths.append(max(filled))
    return tuple(lengths)
