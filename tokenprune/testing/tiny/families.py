"""A tiny random model of every supported family, built from a config, and what its processor would make of a prompt."""

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from tokenprune.testing.tiny.family import VIDEO, Family
from tokenprune.testing.tiny.gemma import GEMMA
from tokenprune.testing.tiny.models import BOS, FIRST_WORD, PAD, MakeInputs, seeded, tiny_llava
from tokenprune.testing.tiny.qwen import QWEN
from tokenprune.testing.tiny.tiles import TILED

_FAMILIES: dict[str, Family] = {**TILED, **QWEN, **GEMMA}


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
