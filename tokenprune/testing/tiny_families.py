"""A tiny random model of every supported family, built from a config, and what its processor would make of a prompt."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from tokenprune.testing.tiny_models import BOS, EOS, FIRST_WORD, IMAGE, PAD, VOCABULARY, MakeInputs, seeded, tiny_llava

VIDEO, START, END, FENCE, WHOLE, PART = 113, 114, 115, 116, 117, 118
"""Ids of special tokens: a video's placeholder, marks around images, before tiles, and of whole images and parts."""
PATCH, SIDE = 7, 28
NEXT_SIZES = ((28, 56), (40, 50), (90, 40), (30, 33))
"""Heights and widths of the images of LLaVA-NeXT and OneVision; image k has number k modulo 4."""
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
TILES = (1, 3, 1, 2)
"""Tiles of the images of InternVL, Idefics3 and SmolVLM."""


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


def tiny_model(
    family: str,
    seed: int = 0,
    *,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    hidden: int = 32,
) -> tuple[Any, MakeInputs]:
    """A random model of a family, by the `model_type` of its config.

    In prompts `<k>` is random image number k, whose size and number of tiles depend on k, and `[k]` is random video
    number k, for families that have them.

    Args:
        family: "llava", "llava_next", ...; every one is in `tiny_families()`.
        seed: seed of the weights; the global random state is left alone.
        attn_implementation: "sdpa" or "eager".
        dtype: of all weights.
        layers: decoder layers.
        hidden: width of the language model, a multiple of 16.

    Raises:
        ValueError: when there is no such family.

    Examples:
        >>> model, make_inputs = tiny_model("internvl")
        >>> make_inputs(["what is in <1>"])["pixel_values"].shape
        torch.Size([3, 3, 56, 56])
    """
    if family == "llava":
        return tiny_llava(seed, attn_implementation=attn_implementation, dtype=dtype, layers=layers, hidden=hidden)
    if family not in _FAMILIES:
        raise ValueError(f"tiny_model: family must be one of {', '.join(tiny_families())}, got {family!r}")
    entry = _FAMILIES[family]

    def build() -> Any:  # noqa: ANN401
        model = entry.build(layers, hidden)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                text = any(part in name for part in ("language_model", "text_model", "lm_head"))
                # Wide enough that attention is not flat and tokens differ: mistakes move logits by more than rounding.
                if parameter.ndim >= 2 or "newline" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.15 if text else 0.25))
        return model

    model = seeded(build, seed)
    model.set_attn_implementation(attn_implementation)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval(), lambda prompts, *, padding_side="left": _inputs(entry, prompts, padding_side)


def tiny_families() -> tuple[str, ...]:
    """Families that `tiny_model` builds."""
    return ("llava", *_FAMILIES)


def _inputs(family: Family, prompts: Sequence[str], padding_side: str) -> dict[str, Tensor]:
    rows, pieces = [], []
    for prompt in prompts:
        words, row, mine = prompt.split(), [BOS], []
        found = [re.fullmatch(r"<(\d+)>|\[(\d+)\]", word) for word in words]
        images = sum(match is not None and match[1] is not None for match in found)
        for word, match in zip(words, found, strict=True):
            if match is None:
                row.append(FIRST_WORD + crc32(word.encode()) % (VIDEO - FIRST_WORD))
                continue
            if match[1] is None and family.video is None:
                raise ValueError(f"tiny_model: the family has no videos, got {word!r}")
            make = family.image if match[1] is not None else family.video
            mine.append(make(int(match[1] or match[2]), images))  # type: ignore[misc]
            row.extend(mine[-1].ids)
        rows.append(row)
        pieces.append(mine)
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if padding_side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    visual = family.collect(pieces) if any(pieces) else {}
    return {"input_ids": ids, "attention_mask": mask, **visual, **family.per_column(ids)}


def _noise(number: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + number))


def _text(layers: int, hidden: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
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


def _vision(side: int, layers: int = 3) -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "image_size": side,
        "patch_size": PATCH,
    }


def _flat(pieces: list[list[Piece]], *names: str) -> dict[str, Tensor]:
    """Each argument of all pieces one after another."""
    every = [piece.arguments for row in pieces for piece in row]
    values = {name: [arguments[name] for arguments in every if name in arguments] for name in names}
    return {name: torch.cat(value) for name, value in values.items() if value}


# LLaVA-NeXT, LLaVA-OneVision


def _llava_next(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**_vision(SIDE), projection_dim=16),
            text_config=LlamaConfig(**_text(layers, hidden)),
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
            vision_config=SiglipVisionConfig(**_vision(SIDE), vision_use_head=False),
            text_config=Qwen2Config(**_text(layers, hidden)),
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
    return Piece([IMAGE] * tokens, {"pixel_values": _noise(number, tiles, 3, SIDE, SIDE), "image_sizes": size})


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
    return {**images, **({"batch_num_images": several} if images else {}), **_flat(pieces, "pixel_values_videos")}


def _onevision_video(number: int, images: int) -> Piece:
    frames = 3
    return Piece([VIDEO] * (frames * 4 + 1), {"pixel_values_videos": _noise(500 + number, 1, frames, 3, SIDE, SIDE)})


# InternVL, Idefics3, SmolVLM


def _internvl(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = {**_vision(2 * SIDE, 2), "image_size": [2 * SIDE] * 2, "patch_size": [PATCH] * 2}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(**vision),
            text_config=Qwen2Config(**_text(layers, hidden)),
            image_token_id=IMAGE,
        )
    )


def _internvl_image(number: int, images: int) -> Piece:
    tiles = TILES[number % 4]
    pixels = _noise(number, tiles, 3, 2 * SIDE, 2 * SIDE)
    return Piece([START, *[IMAGE] * (16 * tiles), END], {"pixel_values": pixels})


def _idefics3(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=_vision(2 * SIDE, 2),
            text_config=LlamaConfig(**_text(layers, hidden)),
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def _smolvlm(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=_vision(2 * SIDE, 2),
            text_config=LlamaConfig(**_text(layers, hidden)),
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def _idefics_image(number: int, images: int) -> Piece:
    tiles = TILES[number % 4]
    marks = [PART - 9 + i for i in range(tiles - 1)] + [WHOLE]  # the mark of a part tells its place
    ids = [token for mark in marks for token in (FENCE, mark, *[IMAGE] * 16)]
    return Piece([*ids, FENCE], {"pixel_values": _noise(number, tiles, 3, 2 * SIDE, 2 * SIDE)})


def _idefics_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    rows = [[tile for piece in row for tile in piece.arguments["pixel_values"]] for row in pieces]
    pixels = torch.zeros(len(rows), max(map(len, rows)), 3, 2 * SIDE, 2 * SIDE)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            pixels[i, j] = tile
    return {"pixel_values": pixels}


# Qwen2-VL, Qwen2.5-VL, Qwen3-VL

THW = ((1, 8, 8), (1, 6, 8), (1, 10, 4), (1, 4, 14))
"""Time, height and width in patches of the images of the Qwen families; of their videos with `FRAMES` at the time."""
FRAMES = (2, 3)


def _qwen_text(layers: int, hidden: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [hidden // 8 - 2, 1, 1]}
    return _text(layers, hidden, rope_parameters=rope)


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
    pixels = _noise(number, t * h * w, 3 * 2 * 4 * 4)
    ids = [START, *[IMAGE] * (h * w // 4), END]
    return Piece(ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[t, h, w]])})


def _qwen_video(number: int, images: int, *, split: bool = False) -> Piece:
    t, (_, h, w) = FRAMES[number % 2], THW[number % 4]
    pixels = _noise(500 + number, t * h * w, 3 * 2 * 4 * 4)
    frame = [START, *[VIDEO] * (h * w // 4), END]
    # Qwen3-VL writes the time before each frame.
    ids = (
        [token for i in range(t) for token in (FIRST_WORD + i, *frame)]
        if split
        else [START, *[VIDEO] * (t * h * w // 4), END]
    )
    return Piece(ids, {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[t, h, w]])})


def _qwen_collect(pieces: list[list[Piece]]) -> dict[str, Tensor]:
    return _flat(pieces, "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def _qwen_types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


# PaliGemma, Gemma3


def _paligemma(layers: int, hidden: int) -> Any:  # noqa: ANN401
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**_vision(SIDE), vision_use_head=False),
            text_config=GemmaConfig(**_text(layers, hidden, head_dim=8)),
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
            vision_config=SiglipVisionConfig(**_vision(2 * SIDE), vision_use_head=False),
            text_config=Gemma3TextConfig(**_text(layers, hidden, **text)),
            mm_tokens_per_image=16,
            image_token_index=IMAGE,
        )
    )


BEYOND = VOCABULARY + 2
"""PaliGemma's placeholder, which has no embedding."""

_FAMILIES: dict[str, Family] = {
    "llava_next": Family(_llava_next, _next_image, _next_collect),
    "llava_onevision": Family(
        _llava_onevision,
        lambda number, images: _next_image(number, images, limit=2),
        _onevision_collect,
        _onevision_video,
    ),
    "internvl": Family(_internvl, _internvl_image, lambda pieces: _flat(pieces, "pixel_values")),
    "idefics3": Family(_idefics3, _idefics_image, _idefics_collect),
    "smolvlm": Family(_smolvlm, _idefics_image, _idefics_collect),
    "qwen2_vl": Family(_qwen2, _qwen_image, _qwen_collect, _qwen_video, _qwen_types),
    "qwen2_5_vl": Family(_qwen2_5, _qwen_image, _qwen_collect, _qwen_video, _qwen_types),
    "qwen3_vl": Family(_qwen3, _qwen_image, _qwen_collect, partial(_qwen_video, split=True), _qwen_types),
    "paligemma": Family(
        _paligemma,
        lambda number, images: Piece([BEYOND] * 16, {"pixel_values": _noise(number, 1, 3, SIDE, SIDE)}),
        lambda pieces: _flat(pieces, "pixel_values"),
        per_column=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
    ),
    "gemma3": Family(
        _gemma3,
        lambda number, images: Piece(
            [START, *[IMAGE] * 16, END], {"pixel_values": _noise(number, 1, 3, 2 * SIDE, 2 * SIDE)}
        ),
        lambda pieces: _flat(pieces, "pixel_values"),
        per_column=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
    ),
}
