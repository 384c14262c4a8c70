"""Tiny models of PaliGemma and Gemma3."""

from typing import Any

import torch

from tokenprune.testing.tiny.family import END, SIDE, START, Family, Piece, flat, noise, text_config, vision_config
from tokenprune.testing.tiny.models import IMAGE, VOCABULARY

# PaliGemma, Gemma3


def _paligemma(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**vision_config(SIDE), vision_use_head=False),
            text_config=GemmaConfig(**text_config(layers, hidden, head_dim=8)),
            image_token_index=BEYOND,
            projection_dim=hidden,
        )
    )


def _gemma3(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    kinds = ["sliding_attention", "full_attention"] * layers
    text = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 9, "layer_types": kinds[:layers]}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=SiglipVisionConfig(**vision_config(2 * SIDE), vision_use_head=False),
            text_config=Gemma3TextConfig(**text_config(layers, hidden, **text)),
            mm_tokens_per_image=16,
            image_token_index=IMAGE,
        )
    )


BEYOND = VOCABULARY + 2
"""PaliGemma's placeholder, which has no embedding."""


GEMMA: dict[str, Family] = {
    "paligemma": Family(
        _paligemma,
        lambda number, images: Piece([BEYOND] * 16, {"pixel_values": noise(number, 1, 3, SIDE, SIDE)}),
        lambda pieces: flat(pieces, "pixel_values"),
        per_column=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
    ),
    "gemma3": Family(
        _gemma3,
        lambda number, images: Piece(
            [START, *[IMAGE] * 16, END], {"pixel_values": noise(number, 1, 3, 2 * SIDE, 2 * SIDE)}
        ),
        lambda pieces: flat(pieces, "pixel_values"),
        per_column=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
    ),
}
