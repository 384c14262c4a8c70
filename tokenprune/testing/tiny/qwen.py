"""Tiny models of the Qwen families: Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.tiny.family import END, START, VIDEO, Family, Piece, flat, noise, text_config
from tokenprune.testing.tiny.models import FIRST_WORD, IMAGE

# Qwen2-VL, Qwen2.5-VL, Qwen3-VL

THW = ((1, 8, 8), (1, 6, 8), (1, 10, 4), (1, 4, 14))
"""Time, height and width in patches of the images of the Qwen families; of their videos with `FRAMES` at the time."""
FRAMES = (2, 3)


def _qwen_text(layers: int, hidden: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [hidden // 8 - 2, 1, 1]}
    return text_config(layers, hidden, rope_parameters=rope)


def _qwen2(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 24, "hidden_size": hidden, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=_qwen_text(layers, hidden), **_QWEN_IDS)
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 24,
        "intermediate_size": 48,
        "out_hidden_size": hidden,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=_qwen_text(layers, hidden), **_QWEN_IDS)
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 3,
        "hidden_size": 24,
        "intermediate_size": 48,
        "out_hidden_size": hidden,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**_qwen_text(layers, hidden), "head_dim": hidden // 4}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **_QWEN_IDS)
    return Qwen3VLForConditionalGeneration(config)


_QWEN_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def _qwen_image(number: int, images: int) -> Piece:
    t, h, w = THW[number % 4]
    pixels = noise(number, t * h * w, 3 * 2 * 4 * 4)
    ids = [START, *[IMAGE] * (h * w // 4), END]
    return Piece(ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[t, h, w]])})


def _qwen_video(number: int, images: int, *, split: bool = False) -> Piece:
    t, (_, h, w) = FRAMES[number % 2], THW[number % 4]
    pixels = noise(500 + number, t * h * w, 3 * 2 * 4 * 4)
    frame = [START, *[VIDEO] * (h * w // 4), END]
    # Qwen3-VL writes the time before each frame.
    ids = (
        [token for i in range(t) for token in (FIRST_WORD + i, *frame)]
        if split
        else [START, *[VIDEO] * (t * h * w // 4), END]
    )
    return Piece(ids, {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[t, h, w]])})


def _qwen_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    return flat(pieces, "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def _qwen_types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


QWEN: dict[str, Family] = {
    "qwen2_vl": Family(_qwen2, _qwen_image, _qwen_collect, _qwen_video, _qwen_types),
    "qwen2_5_vl": Family(_qwen2_5, _qwen_image, _qwen_collect, _qwen_video, _qwen_types),
    "qwen3_vl": Family(_qwen3, _qwen_image, _qwen_collect, partial(_qwen_video, split=True), _qwen_types),
}
