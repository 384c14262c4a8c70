"""The greedy loops in torch: any device, no wait for it, the same operations whatever the numbers are.

Each picks `keep` rows per image, ties to the lowest index. A row of the matrix is asked for only when its token has
been picked, so it may be computed then: `rows` maps picks (b,) to rows (b, n).
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows: TypeAlias = Callable[[Int[Tensor, " b"]], Float[Tensor, "b n"]]

DEPENDENT = 1e-6
"""Residual over own quality at or below which a token counts as a combination of those picked."""


def rows_of(matrix: Float[Tensor, "b n n"]) -> Rows:
    """The rows of matrices that are there."""
    image = torch.arange(matrix.shape[0], device=matrix.device)
    return lambda picks: matrix[image, picks]


def max_sum(
    rows: Rows, keep: int, first: Int[Tensor, " b"], valid: Bool[Tensor, "b n"], dtype: torch.dtype = torch.float32
) -> Int[Tensor, "b k"]:
    """Next comes the token with the largest sum of entries to those picked."""
    picks = torch.empty((len(first), keep), dtype=torch.int64, device=first.device)
    # Nothing that is finite brings a masked token back: it stays at minus infinity.
    gains = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, -torch.inf)
    pick = first
    for step in range(keep):
        if step:
            pick = gains.argmax(1)
        picks[:, step] = pick
        if step + 1 < keep:
            gains += rows(pick)
            gains.scatter_(1, pick[:, None], -torch.inf)
    return picks


def max_min(
    rows: Rows, keep: int, first: Int[Tensor, " b"], valid: Bool[Tensor, "b n"], dtype: torch.dtype = torch.float32
) -> Int[Tensor, "b k"]:
    """Next comes the token whose smallest entry to those picked is largest."""
    picks = torch.empty((len(first), keep), dtype=torch.int64, device=first.device)
    nearest = torch.full(valid.shape, torch.inf, dtype=dtype, device=valid.device).masked_fill_(~valid, -torch.inf)
    pick = first
    for step in range(keep):
        if step:
            pick = nearest.argmax(1)
        picks[:, step] = pick
        if step + 1 < keep:
            nearest = torch.minimum(nearest, rows(pick))
            nearest.scatter_(1, pick[:, None], -torch.inf)
    return picks


def max_determinant(
    rows: Rows, keep: int, quality: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b k"]:
    """Next comes the token that enlarges the determinant of the picked block most: incremental Cholesky, O(n k^2).

    Beyond the rank of the kernel residuals are rounding noise: tokens at or below `DEPENDENT` of their own quality
    rank below all others and among themselves by quality.

    Args:
        rows: of the kernel.
        keep: picks per image.
        quality: (b, n), the kernel's diagonal.
        valid: (b, n), False for padding.
    """
    batch, n = quality.shape
    image = torch.arange(batch, device=quality.device)
    last_resort = last_resorts(quality)
    residual = quality.clone()
    factors = quality.new_zeros((keep, batch, n))
    picks = torch.empty((batch, keep), dtype=torch.int64, device=quality.device)
    free = valid.clone()
    for step in range(keep):
        dependent = residual <= DEPENDENT * quality
        pick = torch.where(dependent, last_resort, residual).masked_fill_(~free, -torch.inf).argmax(1)
        picks[:, step] = pick
        free.scatter_(1, pick[:, None], False)
        known = factors[:step]
        row = rows(pick) - torch.einsum("kb,kbn->bn", known[:, image, pick], known)
        row = row / residual[image, pick].sqrt()[:, None]
        row = torch.where(dependent[image, pick][:, None], 0.0, row)
        residual = residual - row.square()
        factors[step] = row
    return picks


def last_resorts(quality: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """What dependent tokens are ranked by: in [-2, -1], growing with quality."""
    return quality / quality.amax(1, keepdim=True).clamp_min(torch.finfo(quality.dtype).tiny) - 2
