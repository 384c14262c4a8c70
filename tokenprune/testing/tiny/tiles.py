"""Tiny models of the families that see an image in tiles: LLaVA-NeXT, LLaVA-OneVision, InternVL, Idefics3, SmolVLM."""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.tiny.family import (
    END,
    FENCE,
    PART,
    PATCH,
    SIDE,
    START,
    VIDEO,
    WHOLE,
    Family,
    Piece,
    flat,
    noise,
    text_config,
    vision_config,
)
from tokenprune.testing.tiny.models import IMAGE

NEXT_SIZES = ((28, 56), (40, 50), (90, 40), (30, 33))
"""Heights and widths of the images of LLaVA-NeXT and OneVision; image k has number k modulo 4."""
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
TILES = (1, 3, 1, 2)
"""Tiles of the images of InternVL, Idefics3 and SmolVLM."""


# LLaVA-NeXT, LLaVA-OneVision


def _llava_next(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**vision_config(SIDE), projection_dim=16),
            text_config=LlamaConfig(**text_config(layers, hidden)),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )


def _llava_onevision(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**vision_config(SIDE), vision_use_head=False),
            text_config=Qwen2Config(**text_config(layers, hidden)),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )


def next_shape(number: int) -> tuple[int, int, int, int]:
    """Rows and columns of tiles, and height and width in tokens of the unpadded grid, of an image of LLaVA-NeXT."""
    height, width = NEXT_SIZES[number % 4]

    def used(point: list[int]) -> tuple[int, int]:
        scale = min(point[1] / width, point[0] / height)
        area = min(int(width * scale) * int(height * scale), width * height)
        return area, area - point[0] * point[1]

    rows, columns = (side // SIDE for side in max(PINPOINTS, key=used))
    side = SIDE // PATCH
    h, w = rows * side, columns * side
    if width / height > w / h:
        h -= 2 * ((h - int(round(height * w / width, 7))) // 2)
    else:
        w -= 2 * ((w - int(round(width * h / height, 7))) // 2)
    return rows, columns, h, w


def _next_image(number: int, images: int, limit: int | None = None) -> Piece:
    rows, columns, h, w = next_shape(number)
    side = SIDE // PATCH
    cut = limit is None or images == 1
    tiles = 1 + rows * columns if cut else 1
    if limit is not None and (ratio := (h * w / (limit * side**2)) ** 0.5) > 1.1:
        h, w = int(h // ratio), int(w // ratio)
    tokens = side**2 + (h * (w + 1) if cut else 1)
    size = torch.tensor([NEXT_SIZES[number % 4]])
    return Piece([IMAGE] * tokens, {"pixel_values": noise(number, tiles, 3, SIDE, SIDE), "image_sizes": size})


def _next_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    images = [piece.arguments for row in pieces for piece in row if "image_sizes" in piece.arguments]
    if not images:
        return {}
    most = max(image["pixel_values"].shape[0] for image in images)
    pixels = torch.zeros(len(images), most, 3, SIDE, SIDE)
    for i, image in enumerate(images):
        pixels[i, : image["pixel_values"].shape[0]] = image["pixel_values"]
    return {"pixel_values": pixels, "image_sizes": torch.cat([image["image_sizes"] for image in images])}


def _onevision_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    several = torch.tensor([sum("image_sizes" in piece.arguments for piece in row) for row in pieces])
    images = _next_collect(pieces)
    return {**images, **({"batch_num_images": several} if images else {}), **flat(pieces, "pixel_values_videos")}


def _onevision_video(number: int, images: int) -> Piece:
    frames = 3
    return Piece([VIDEO] * (frames * 4 + 1), {"pixel_values_videos": noise(500 + number, 1, frames, 3, SIDE, SIDE)})


# InternVL, Idefics3, SmolVLM


def _internvl(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = {**vision_config(2 * SIDE, 2), "image_size": [2 * SIDE] * 2, "patch_size": [PATCH] * 2}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(**vision),
            text_config=Qwen2Config(**text_config(layers, hidden)),
            image_token_id=IMAGE,
        )
    )


def _internvl_image(number: int, images: int) -> Piece:
    tiles = TILES[number % 4]
    pixels = noise(number, tiles, 3, 2 * SIDE, 2 * SIDE)
    return Piece([START, *[IMAGE] * (16 * tiles), END], {"pixel_values": pixels})


def _idefics3(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision_config(2 * SIDE, 2),
            text_config=LlamaConfig(**text_config(layers, hidden)),
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def _smolvlm(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=vision_config(2 * SIDE, 2),
            text_config=LlamaConfig(**text_config(layers, hidden)),
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def _idefics_image(number: int, images: int) -> Piece:
    tiles = TILES[number % 4]
    marks = [PART - 9 + i for i in range(tiles - 1)] + [WHOLE]  # the mark of a part tells its place
    ids = [token for mark in marks for token in (FENCE, mark, *[IMAGE] * 16)]
    return Piece([*ids, FENCE], {"pixel_values": noise(number, tiles, 3, 2 * SIDE, 2 * SIDE)})


def _idefics_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    rows = [[tile for piece in row for tile in piece.arguments["pixel_values"]] for row in pieces]
    pixels = torch.zeros(len(rows), max(map(len, rows)), 3, 2 * SIDE, 2 * SIDE)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            pixels[i, j] = tile
    return {"pixel_values": pixels}


TILED: dict[str, Family] = {
    "llava_next": Family(_llava_next, _next_image, _next_collect),
    "llava_onevision": Family(
        _llava_onevision,
        lambda number, images: _next_image(number, images, limit=2),
        _onevision_collect,
        _onevision_video,
    ),
    "internvl": Family(_internvl, _internvl_image, lambda pieces: flat(pieces, "pixel_values")),
    "idefics3": Family(_idefics3, _idefics_image, _idefics_collect),
    "smolvlm": Family(_smolvlm, _idefics_image, _idefics_collect),
}
