"""Random `Tokens` that carry every signal a strategy may read."""

from collections.abc import Iterable
from typing import Any

import torch

from tokenprune.core.signals import FIELDS, Signal, declared
from tokenprune.core.tokens import Tokens

_SIZES = {"clip": 10, "t": 5, "e": 8, "f": 12, "_": 4}


def random_tokens(
    rows: int = 6,
    columns: int = 8,
    *,
    width: int = 16,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    signals: Iterable[Signal] | None = None,
) -> Tokens:
    """Draw one image of `rows` x `columns` Gaussian tokens with random signals, by their axes.

    Args:
        rows: height of the token raster.
        columns: width of the token raster.
        width: d, the language model's width.
        text: m, number of text tokens; the last half of them is the question.
        seed: of the draw; also the image's key.
        dtype: of every floating point tensor.
        signals: which ones; None for all that imported modules declare. Those with a default and no example stay open.

    Examples:
        >>> random_tokens(2, 3).n
        6
    """
    draw = torch.Generator().manual_seed(seed)
    n = rows * columns

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    visual, words = normal(n, width), normal(text, width)
    known: dict[Signal, Any] = {}
    for signal in sorted(set(declared() if signals is None else signals) - FIELDS, key=lambda signal: signal.name):
        if signal.example is not None:
            known[signal] = signal.example(n, seed)
        elif signal.required and signal.axes:
            sizes = {"n": n, "d": width, "c": width, "m": text, **_SIZES}
            shape = [int(axis) if axis.isdigit() else sizes.get(axis, 3 + len(axis)) for axis in signal.shape]
            # Its own draw, so that it does not depend on which other signals there are.
            own = torch.Generator().manual_seed(seed * 1_000_003 + sum(map(ord, signal.name)))
            known[signal] = _values(signal, shape, own).to(dtype)
    return Tokens(visual, words, question=torch.arange(text) >= text // 2, grid=(rows, columns), signals=known)


def _values(signal: Signal, shape: list[int], draw: torch.Generator) -> torch.Tensor:
    if signal.dtype is not None:
        raise ValueError(f"random_tokens: {signal} holds {signal.dtype}; declare it with an example=...")
    if signal.token_axis == len(shape) - 1 > 0:  # attention: rows add up to 1
        weights = torch.rand(shape, generator=draw, dtype=torch.float64)
        return weights / weights.sum(-1, keepdim=True)
    return torch.randn(shape, generator=draw, dtype=torch.float64)
