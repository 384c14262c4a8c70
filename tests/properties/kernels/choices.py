"""Tokens that are hard to choose among, and what every strategy keeps of them; run as a program it prints that."""

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import tokenprune.baselines  # noqa: F401 (declares the signals that the methods read)
from tokenprune import GreedyRepMax, PruningStrategy, Tokens, parse, strategies
from tokenprune.core.text import example
from tokenprune.testing import random_tokens

HARD = ("random", "copies", "near", "zeros", "offset", "narrow")


def every_strategy() -> list[PruningStrategy]:
    """One of each, with a budget, and the greedy ones with other rules."""
    kinds: Any = ("euclidean", "sqeuclidean", "angular")
    examples = [example(cls) for _, cls in sorted(strategies().items())]
    return [
        *examples,
        *(GreedyRepMax(0.4, distance=kind) for kind in kinds),
        parse("greedy_repmax(keep=7, start='pair')"),
    ]


def per_token(tokens: Tokens, change: Any) -> Tokens:
    """`tokens` with every signal that has a row per token changed; `change` takes and returns rows first."""
    signals = dict(tokens.signals)
    for signal, value in tokens.signals.items():
        if signal.token_axis is not None and value.ndim == 2 and value.is_floating_point():
            signals[signal] = change(value.mT).mT.contiguous() if signal.token_axis else change(value)
    return replace(tokens, visual=change(tokens.visual), signals=signals)


def hard_tokens(kind: str, seed: int, rows: int = 6, columns: int = 8, width: int = 16) -> Tokens:
    """One image whose tokens repeat, nearly repeat, are zero, or lie close together in every signal."""
    tokens = random_tokens(rows, columns, width=width, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    n = tokens.n
    which = torch.randint(max(1, n // 3), (n,), generator=draw)
    empty = torch.rand(n, generator=draw) < 0.3

    def change(x: Tensor) -> Tensor:
        if kind in ("copies", "near"):
            x = x[which]
        if kind == "near":  # some numbers one step of float32 up
            up = torch.rand(x.shape, generator=draw) < 0.1
            x = torch.where(up, torch.nextafter(x, torch.full_like(x, torch.inf)), x)
        if kind == "zeros":
            x = torch.where(empty[:, None], 0.0, x)
        if kind == "offset":
            x = x + 3
        if kind == "narrow":
            x = x[:1] + 1e-3 * x
        return x

    return per_token(tokens, change)


def kept(strategy: PruningStrategy, tokens: Tokens) -> list[int]:
    """What is kept, in the order in which it was chosen where there is one."""
    selection = strategy.select(tokens)
    return (selection.indices if selection.order is None else selection.order).tolist()


def choices() -> dict[str, list[int]]:
    """What every strategy keeps of every kind of image, small and as large as to be split among threads."""
    found = {}
    for kind in HARD:
        large = [(20, 28, 520)] if kind in ("random", "near") else []
        for seed, size in enumerate([(6, 8, 16), *large]):
            tokens = hard_tokens(kind, seed, *size)
            for strategy in every_strategy():
                found[f"{kind} {size} {strategy!r}"] = kept(strategy, tokens)
    return found


if __name__ == "__main__":
    json.dump(choices(), sys.stdout)
