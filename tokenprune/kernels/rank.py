"""Ranking by score, ties to the lowest index."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import brief

_RANKED = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


def top_k(scores: Float[Tensor, "*b n"], k: int) -> tuple[Int[Tensor, "*b k"], Int[Tensor, "*b k"]]:
    """The k largest of the last axis: (indices ascending, indices by falling score); ties go to the lowest index.

    Args:
        scores: (..., n), real numbers; NaN ranks nowhere and is refused where it costs nothing to look, on the CPU.
        k: how many, 0 to n.

    Raises:
        TypeError: when scores are no dense tensor of real numbers, or k is no int.
        ValueError: when k is out of range, or scores hold NaN.

    Examples:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0]), 2)[1]
        tensor([1, 2])
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"top_k: scores must be a torch.Tensor, got {type(scores).__name__}; use torch.as_tensor")
    if scores.is_nested or scores.layout != torch.strided or scores.dtype not in _RANKED or not scores.ndim:
        kind = "nested" if scores.is_nested else f"{scores.dtype} {tuple(scores.shape)} of layout {scores.layout}"
        raise TypeError(f"top_k: scores must be a dense tensor of real numbers, one axis or more, got {kind}")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"top_k: k must be an int, got {brief(k)} of type {type(k).__name__}")
    if not 0 <= k <= scores.shape[-1]:
        raise ValueError(f"top_k: k must be from 0 to {scores.shape[-1]}, the number of scores, got {brief(k)}")
    if scores.is_cpu and bool(scores.isnan().any()):
        raise ValueError("top_k: scores hold NaN, which has no rank; find where it is made")
    return _ranked(scores, k)


def _ranked(scores: Float[Tensor, "*b n"], k: int) -> tuple[Int[Tensor, "*b k"], Int[Tensor, "*b k"]]:
    """`top_k` for arguments that are known to be sound."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return order.sort(dim=-1).values, order


def top_each(
    scores: Sequence[Float[Tensor, " _"]], keeps: Sequence[int]
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """`top_k` for the scores of several images, side by side; what an image gets does not depend on the others.

    Args:
        scores: (n,) each, any n.
        keeps: how many of each, 1 to n.

    Examples:
        >>> top_each([torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0.0, 1.0])], [2, 1])
        [(tensor([1, 2]), tensor([1, 2])), (tensor([1]), tensor([1]))]
    """
    found: list[tuple[Tensor, Tensor] | None] = [None] * len(scores)
    groups: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for i, (score, keep) in enumerate(zip(scores, keeps, strict=True)):
        # One number of picks per group: what is cut off must not be sorted with the rest.
        groups.setdefault((keep, score.dtype, score.device), []).append(i)
    for (keep, *_), members in groups.items():
        # Minus infinity behind the scores: a stable sort leaves it behind every score of the image.
        alike = len({scores[i].shape for i in members}) == 1
        parts = [scores[i] for i in members]
        together = torch.stack(parts) if alike else torch.nn.utils.rnn.pad_sequence(parts, True, -torch.inf)
        for i, indices, order in zip(members, *_ranked(together, keep), strict=True):
            found[i] = (indices, order)
    return [pair for pair in found if pair is not None]
