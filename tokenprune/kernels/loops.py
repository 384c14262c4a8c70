"""The greedy loops in torch: any device, no wait for it, the same operations whatever the numbers are.

Each picks `keep` rows per image from float64 matrices; scores within a slack of the best are ties, which go to the
lowest index. A row of the matrix is asked for only when its token has
been picked, so it may be computed then: `rows` maps picks (b,) to rows (b, n).
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.kernels.ties import TIED, lowest_best

Rows: TypeAlias = Callable[[Int[Tensor, " b"]], Float[Tensor, "b n"]]

DEPENDENT = 1e-6
"""Residual over own quality at or below which a token counts as a combination of those picked."""


TIED_RESIDUAL = 2.0**-40
"""Residuals that differ by at most this share of the image's largest quality are ties."""


def rows_of(matrix: Float[Tensor, "b n n"]) -> Rows:
    """The rows of matrices that are there."""
    image = torch.arange(matrix.shape[0], device=matrix.device)
    return lambda picks: matrix[image, picks]


def max_sum(
    rows: Rows,
    keep: int,
    first: Int[Tensor, " b"],
    valid: Bool[Tensor, "b n"],
    dtype: torch.dtype = torch.float64,
    scale: Float[Tensor, "b 1"] | float = 1.0,
) -> Int[Tensor, "b k"]:
    """Next comes the token with the largest sum of entries to those picked.

    Args:
        rows: of the matrices.
        keep: picks per image.
        first: (b,), the first pick of each.
        valid: (b, n), False for padding.
        dtype: of the scores.
        scale: the largest entry of each matrix; scores within `TIED` of it per token picked are ties.
    """
    picks = torch.empty((len(first), keep), dtype=torch.int64, device=first.device)
    # Nothing that is finite brings a masked token back: it stays at minus infinity.
    gains = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, -torch.inf)
    pick = first
    for step in range(keep):
        if step:
            pick = lowest_best(gains, scale * (TIED * step))
        picks[:, step] = pick
        if step + 1 < keep:
            gains += rows(pick)
            gains.scatter_(1, pick[:, None], -torch.inf)
    return picks


def max_min(
    rows: Rows,
    keep: int,
    first: Int[Tensor, " b"],
    valid: Bool[Tensor, "b n"],
    dtype: torch.dtype = torch.float64,
    scale: Float[Tensor, "b 1"] | float = 1.0,
) -> Int[Tensor, "b k"]:
    """Next comes the token whose smallest entry to those picked is largest; see `max_sum`."""
    picks = torch.empty((len(first), keep), dtype=torch.int64, device=first.device)
    nearest = torch.full(valid.shape, torch.inf, dtype=dtype, device=valid.device).masked_fill_(~valid, -torch.inf)
    pick = first
    for step in range(keep):
        if step:
            pick = lowest_best(nearest, scale * TIED)
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
    slack = quality.masked_fill(~valid, 0.0).amax(1, keepdim=True) * TIED_RESIDUAL
    factors = quality.new_zeros((keep, batch, n))
    picks = torch.empty((batch, keep), dtype=torch.int64, device=quality.device)
    free = valid.clone()
    for step in range(keep):
        dependent = residual <= DEPENDENT * quality
        # Dependent tokens rank by last resorts, which are negative, with a slack of their own.
        chances = residual.masked_fill(dependent | ~free, -torch.inf)
        resorts = last_resort.masked_fill(~free, -torch.inf)
        left = (~dependent & free).any(1)
        pick = torch.where(left, lowest_best(chances, slack), lowest_best(resorts, TIED_RESIDUAL))
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
