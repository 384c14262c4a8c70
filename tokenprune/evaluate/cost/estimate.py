"""What a benchmark will need in memory, before anything is built."""

from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.evaluate.cost.configs import random_model
from tokenprune.evaluate.cost.memory import free_memory
from tokenprune.evaluate.cost.shapes import DecoderShape, TowerShape


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a benchmark will need, by formula.

    Attributes:
        weights: parameters and buffers.
        cache: keys and values of the dense prompt and the answer.
        work: the largest intermediate results of a forward pass, roughly.
    """

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        """All of it, with a tenth on top for what allocators lose."""
        return int(1.1 * (self.weights + self.cache + self.work))


def estimate_memory(config: Any, *, batch: int, visual: int, text: int, new: int, dtype: torch.dtype) -> MemoryEstimate:  # noqa: ANN401
    """What the largest run of a benchmark needs.

    Args:
        config: of the model.
        batch: prompts.
        visual: visual tokens per prompt.
        text: text tokens per prompt.
        new: generated tokens.
        dtype: of weights, keys and values.
    """
    decoder, tower = DecoderShape.of(config), TowerShape.of(config)
    element = torch.empty(0, dtype=dtype).element_size()
    model = random_model(config, device=torch.device("meta"), dtype=dtype)
    weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    length = visual + text
    cache = batch * (length + new) * decoder.layers * decoder.kv_bytes(element)
    # One layer is alive at a time: its input, residual, queries, keys, values, and the two halves of the MLP.
    language = batch * length * (6 * decoder.width + 3 * decoder.inner) * element
    rows = batch * max(1, round(visual / tower.patches)) * (tower.patches + tower.prefix)
    seeing = rows * (6 * tower.width + 2 * tower.inner) * element + rows * tower.width * tower.layers * element
    # Selection: features in float32 and their similarity matrix; logits in float32.
    choosing = batch * 4 * (2 * visual * decoder.width + visual * visual) + batch * 4 * decoder.vocabulary
    return MemoryEstimate(weights=weights, cache=cache, work=max(language, seeing, choosing) + choosing)


def check_fits(estimate: MemoryEstimate, device: torch.device) -> None:
    """Raise when the device has not the memory; where the system does not say what is free, nothing is checked.

    Raises:
        ValueError: with both figures and the way out.
    """
    free = free_memory(device)
    if free is not None and estimate.total > free:
        raise ValueError(
            f"the benchmark needs about {estimate.total / 2**30:.1f} GiB (weights {estimate.weights / 2**30:.1f}, keys "
            f"and values {estimate.cache / 2**30:.1f}, work {estimate.work / 2**30:.1f}) but {device} has "
            f"{free / 2**30:.1f} GiB free; choose a smaller --batch, --dtype bfloat16, another --device or --config"
        )
