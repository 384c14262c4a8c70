"""Several kinds of visual input in one prompt: their images and videos in the order of the placeholders."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.models.reading.vision import Vision


def in_prompt_order(parts: Sequence[tuple[int, Vision]], ids: Int[Tensor, "b l"] | None) -> Vision:
    """One `Vision` of several, its images ordered as their placeholders are.

    Args:
        parts: for each kind of input the id of its placeholders and what was encoded, images in prompt order.
        ids: the prompts; needed only for several parts.

    Raises:
        ValueError: when there are several parts and no prompts, or the prompts have not the placeholders that they
            should have.
    """
    if len(parts) == 1:
        return parts[0][1]
    if ids is None:
        raise ValueError("encode: images and videos together need input_ids, which tell their order")
    kinds = torch.zeros_like(ids)
    for number, (token, _) in enumerate(parts, start=1):
        kinds = kinds.masked_fill(ids == token, number)
    waiting = [list(range(len(part.counts))) for _, part in parts]
    order: list[tuple[int, int]] = []
    places = kinds[kinds > 0].tolist()
    start = 0
    while start < len(places):
        kind = places[start] - 1
        if not waiting[kind]:
            break
        image = waiting[kind].pop(0)
        order.append((kind, image))
        start += parts[kind][1].counts[image]
    if start != len(places) or any(waiting):
        raise ValueError(
            f"prune: the prompts have {len(places)} placeholders for images and videos but these have "
            f"{sum(sum(part.counts) for _, part in parts)} tokens; make prompts and pixels in one processor call"
        )
    return _ordered([part for _, part in parts], order)


def _ordered(parts: Sequence[Vision], order: Sequence[tuple[int, int]]) -> Vision:
    features = [part.features.split(part.counts) for part in parts]
    changes: dict[str, Any] = {
        "features": torch.cat([features[kind][image] for kind, image in order]),
        "counts": tuple(parts[kind].counts[image] for kind, image in order),
        "grids": tuple(parts[kind].grids[image] for kind, image in order),
    }
    stacks = [part.deepstack.split(part.counts, dim=1) for part in parts if part.deepstack is not None]
    if len(stacks) == len(parts):
        changes["deepstack"] = torch.cat([stacks[kind][image] for kind, image in order], dim=1)
    known = dict.fromkeys(signal for part in parts for signal in part.signals)
    nothing = [(None,) * len(part.counts) for part in parts]
    changes["signals"] = {
        signal: tuple(parts[kind].signals.get(signal, nothing[kind])[image] for kind, image in order)
        for signal in known
    }
    return Vision(**changes)
