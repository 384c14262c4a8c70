"""What the tiny models of all families share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.tiny.models import BOS, EOS, PAD, VOCABULARY

VIDEO, START, END, FENCE, WHOLE, PART = 113, 114, 115, 116, 117, 118
"""Ids of special tokens: a video's placeholder, marks around images, before tiles, and of whole images and parts."""
PATCH, SIDE = 7, 28


@dataclass(frozen=True)
class Piece:
    """One image or video of a prompt: its ids, and its arguments before they are put together."""

    ids: list[int]
    arguments: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How to build a tiny model and its inputs.

    Attributes:
        build: from the attention implementation, the number of decoder layers and the width to a model.
        image: from an image's number and how many images its prompt has to the piece.
        collect: from the pieces of each prompt to the visual arguments.
        video: the same as `image` for videos.
        per_column: further arguments with one entry per column, from the ids.
    """

    build: Callable[[int, int], Any]
    image: Callable[[int, int], Piece]
    collect: Callable[[list[list[Piece]]], dict[str, Tensor]]
    video: Callable[[int, int], Piece] | None = None
    per_column: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}


def noise(number: int, *shape: int) -> Tensor:
    """Random pixels; the same number is always the same image."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + number))


def text_config(layers: int, hidden: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Arguments of a language model's config."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }


def vision_config(side: int, layers: int = 3) -> dict[str, Any]:
    """Arguments of a vision tower's config, for square images of `side` pixels."""
    return {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "image_size": side,
        "patch_size": PATCH,
    }


def flat(pieces: list[list[Piece]], *names: str) -> dict[str, Tensor]:
    """Each argument of all pieces one after another."""
    every = [piece.arguments for row in pieces for piece in row]
    values = {name: [arguments[name] for arguments in every if name in arguments] for name in names}
    return {name: torch.cat(value) for name, value in values.items() if value}
