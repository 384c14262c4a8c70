"""Reading a caller's prompt: ids, padding, positions."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PadIds = tuple[int | None, frozenset[int]]
"""Padding id, or None, and the ids that end a sequence."""


def check_ids(inputs: Mapping[str, Any]) -> Int[Tensor, "b l"]:
    """`inputs["input_ids"]` as int64.

    Raises:
        TypeError: when it is missing or no tensor.
        ValueError: when it is not (prompts, columns).
    """
    ids = inputs.get("input_ids")
    if isinstance(ids, Mapping):
        raise TypeError(
            f"prune: input_ids must be a tensor, got {type(ids).__name__} with {', '.join(map(str, ids))}; pass what "
            "the processor returned with two stars, model.generate(**inputs) or model(**inputs)"
        )
    if not isinstance(ids, Tensor):
        raise TypeError(f"prune: input_ids must be a tensor, got {type(ids).__name__}; pass what the processor returns")
    if ids.ndim != 2 or ids.is_floating_point() or ids.numel() == 0:
        raise ValueError(f"prune: input_ids must be integers (prompts, columns), got {ids.dtype} {tuple(ids.shape)}")
    return ids.long()


def padding_mask(given: object, ids: Int[Tensor, "b l"], pad: PadIds = (None, frozenset())) -> Bool[Tensor, "b l"]:
    """True on real columns: the given mask, or what `generate` infers from padding ids, or all.

    Args:
        given: `attention_mask` as the caller gave it, or None.
        ids: token ids.
        pad: padding id and end ids; padding is inferred only when it is not also an end id, as transformers does.

    Raises:
        TypeError: when `given` is no tensor.
        ValueError: when `given` is not (prompts, columns), or a row has no real column.
    """
    if given is None:
        pad_id, end_ids = pad
        if pad_id is None or pad_id in end_ids:
            return torch.ones_like(ids, dtype=torch.bool)
        return ids != pad_id
    if not isinstance(given, Tensor):
        raise TypeError(f"prune: attention_mask must be a tensor (prompts, columns), got {type(given).__name__}")
    if given.shape != ids.shape:
        raise ValueError(
            f"prune: attention_mask must be (prompts, columns) = {tuple(ids.shape)}, got {tuple(given.shape)}; "
            "masks of other shapes cannot be cut to the kept tokens"
        )
    return given.to(ids.device) != 0


def default_positions(mask: Bool[Tensor, "b l"], *, forward: bool) -> Int[Tensor, "b l"]:
    """Positions that transformers gives the columns when the caller gives none.

    Args:
        mask: True on real columns.
        forward: True for a plain forward (0, 1, 2, ... over all columns), False for `generate` (from the first real
            one).

    Examples:
        >>> default_positions(torch.tensor([[False, True, True]]), forward=False)
        tensor([[0, 0, 1]])
    """
    if forward:
        return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return (mask.long().cumsum(1) - 1).masked_fill(~mask, 0)
