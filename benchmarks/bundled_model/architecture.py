"""The shapes of the bundled model, and its untrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tokenprune.bundled.cards import GRID, PATCH, SIDE
from tokenprune.bundled.vocabulary import BOS, EOS, IDS, IMAGE, PAD, WORDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

WIDTH: Final = 128
HEADS: Final = 4
VISION_LAYERS: Final = 5
TEXT_LAYERS: Final = 4


def sine_positions(width: int = WIDTH) -> Tensor:
    """Sine-cosine positions of the patch grid: (256, width), half of the channels for the row and half for the column.

    Smooth positions at the start let attention find neighbouring patches, which digits that span 3 x 3 patches need.
    """
    frequencies = torch.exp(-torch.arange(width // 4) * (torch.log(torch.tensor(60.0)) / (width // 4)))
    angles = torch.arange(GRID)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None, :].expand(GRID, GRID, -1)
    columns = axis[None, :, :].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], dim=2).reshape(GRID * GRID, width)


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A fresh ``LlavaForConditionalGeneration`` with random weights.

    CLIP vision tower with a CLS token, two-layer projector, Llama language model; about
    2 million parameters in all.

    Args:
        seed: seed of the initial weights.

    Returns:
        The model in float32 and training mode.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        pad_token_id=IDS[PAD],
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS[IMAGE],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    config.pad_token_id = IDS[PAD]
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    _start_vision(model)
    _start_text(model)
    model.train()
    return model


def _start_vision(model: LlavaForConditionalGeneration) -> None:
    tower = model.model.vision_tower
    with torch.no_grad():
        weight = tower.embeddings.patch_embedding.weight
        weight.normal_(std=(3 * PATCH * PATCH) ** -0.5)
        tower.embeddings.position_embedding.weight[0].zero_()
        tower.embeddings.position_embedding.weight[1:] = sine_positions()
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            torch.nn.init.xavier_uniform_(attention.q_proj.weight)
            # Queries equal to keys: at the start a patch attends to patches that look like it and are near it.
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def _start_text(model: LlavaForConditionalGeneration) -> None:
    # A lookup is "find the token that shares a word with the question, and copy its other words". Both halves are
    # there, weakly, at the start: queries equal to keys make tokens attend to tokens that share words with them, and an
    # output projection that is the transpose of the value projection copies what is attended to.
    text = model.model.language_model
    with torch.no_grad():
        text.embed_tokens.weight.normal_(std=0.1)
        text.embed_tokens.weight[IDS[PAD]] = 0.0
        # Equal at the start, but not tied: the output side gives all answer words a large common part, which would hide
        # from the input side which words are equal.
        model.lm_head.weight.copy_(text.embed_tokens.weight)
        for layer in text.layers:
            attention = layer.self_attn
            torch.nn.init.normal_(attention.q_proj.weight, std=WIDTH**-0.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            torch.nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(0.1 * attention.v_proj.weight.T)
            layer.mlp.down_proj.weight.normal_(std=0.01)
