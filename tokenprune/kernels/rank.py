"""Ranking by score, ties to the lowest index."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import brief

REAL_DTYPES = (
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
"""Numbers that can be ranked: no bool, complex, quantised or 8-bit floating point."""

Slack: TypeAlias = float | Float[Tensor, "*b 1"]


def ranking(scores: Float[Tensor, "*b n"], slack: Slack = 0.0) -> Int[Tensor, "*b n"]:
    """Indices by falling score; scores that follow one another within `slack` are ties, in the order of their index.

    Args:
        scores: the last axis is ranked.
        slack: one number, or one for each row, (..., 1).

    Examples:
        >>> ranking(torch.tensor([1.0, 3.0, 3.5, 0.0]), 0.5)
        tensor([1, 2, 0, 3])
    """
    falling = scores.sort(dim=-1, descending=True, stable=True)
    if isinstance(slack, float) and slack == 0.0:
        return falling.indices
    steps = falling.values[..., :-1] - falling.values[..., 1:] > slack  # (..., n - 1); NaN of two infinities is no step
    run = torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
    return falling.indices.gather(-1, (run * scores.shape[-1] + falling.indices).sort(dim=-1).indices)


def top_k(
    scores: Float[Tensor, "*b n"], k: int, *, slack: Slack = 0.0
) -> tuple[Int[Tensor, "*b k"], Int[Tensor, "*b k"]]:
    """The k largest of the last axis: (indices ascending, indices by falling score); ties go to the lowest index.

    Args:
        scores: (..., n), real numbers; NaN ranks nowhere and is refused where it costs nothing to look, on the CPU.
        k: how many, 0 to n.
        slack: scores that follow one another within this distance are ties.

    Raises:
        TypeError: when scores are no dense tensor of real numbers, or k is no int.
        ValueError: when k is out of range, or scores hold NaN.

    Examples:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0]), 2)[1]
        tensor([1, 2])
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"top_k: scores must be a torch.Tensor, got {type(scores).__name__}; use torch.as_tensor")
    if scores.is_nested or scores.layout != torch.strided or scores.dtype not in REAL_DTYPES or not scores.ndim:
        kind = "nested" if scores.is_nested else f"{scores.dtype} {tuple(scores.shape)} of layout {scores.layout}"
        raise TypeError(f"top_k: scores must be a dense tensor of real numbers, one axis or more, got {kind}")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"top_k: k must be an int, got {brief(k)} of type {type(k).__name__}")
    if not 0 <= k <= scores.shape[-1]:
        raise ValueError(f"top_k: k must be from 0 to {scores.shape[-1]}, the number of scores, got {brief(k)}")
    if scores.is_cpu and bool(scores.isnan().any()):
        raise ValueError("top_k: scores hold NaN, which has no rank; find where it is made")
    return _ranked(scores, k, slack)


def _ranked(scores: Float[Tensor, "*b n"], k: int, slack: Slack) -> tuple[Int[Tensor, "*b k"], Int[Tensor, "*b k"]]:
    """`top_k` for arguments that are known to be sound."""
    order = ranking(scores, slack)[..., :k]
    return order.sort(dim=-1).values, order


def top_each(
    scores: Sequence[Float[Tensor, " _"]], keeps: Sequence[int], *, slacks: Sequence[Tensor] | None = None
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """`top_k` for the scores of several images, side by side; what an image gets does not depend on the others.

    Args:
        scores: (n,) each, any n.
        keeps: how many of each, 1 to n.
        slacks: for each image the distance within which scores are ties, without axes; None for 0.

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
        slack: Slack = 0.0 if slacks is None else torch.stack([slacks[i] for i in members])[:, None]
        for i, indices, order in zip(members, *_ranked(together, keep, slack), strict=True):
            found[i] = (indices, order)
    return [pair for pair in found if pair is not None]
