"""When two scores count as equal, and sums that come out the same whatever the order in which they are added.

A processor, a BLAS library, a number of threads, a device and the shape of a batch each choose an order in which the
terms of a sum are added, and every order rounds differently. So that none of them decides which token is kept:

- Scores are compared in float64, and those closer than rounding in float64 can tell apart are ties. A tie goes to the
  lowest index.
- Sums over heads, text tokens and the like are taken in fixed point (`exact_sum`), where nothing is rounded.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

TIED = 2.0**-44
"""Scores that differ by at most this much per summed term, in units of the largest possible term, are ties.

About 250 times the rounding of one float64 operation: more than the orders of summation differ by, and less than a
millionth of what float32 can tell apart."""

_BITS = 52  # whole numbers below 2^53 are exact in float64, one bit is the sign of rounding up to a power of two


def precise_dtype(device: torch.device) -> torch.dtype:
    """The dtype that decides: float64, or float32 on a device that has no float64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def precise(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in the precision that decides; every other floating dtype goes into it without rounding."""
    return x.to(precise_dtype(x.device))


def as_given(score: Float[Tensor, "*shape"], source: Tensor) -> Float[Tensor, "*shape"]:
    """Return a score that is shown in the working precision of what it was made from."""
    return score.to(torch.float64 if source.dtype == torch.float64 else torch.float32)


def unit64(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
    """Rows of length 1 in the precision that decides, from their own numbers alone; a zero row stays zero.

    Rows in float64 are first divided by a power of two, so that no square over- or underflows.

    Examples:
        >>> unit64(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])).round(decimals=6).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    if x.dtype == precise_dtype(x.device):
        largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg())
        rows = x * power_of_two(-torch.frexp(largest).exponent.clamp(-1000, 1000))
    else:  # the squares of narrower types are in range
        rows = precise(x).contiguous()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows.div_(norms.masked_fill_(norms == 0, 1.0))


def power_of_two(exponent: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """2 to a whole exponent from -1022 to 1023, exactly: the bits of the number, written down.

    Examples:
        >>> power_of_two(torch.tensor([-2, 0, 3])).tolist()
        [0.25, 1.0, 8.0]
    """
    if exponent.device.type == "mps":
        return torch.pow(2.0, exponent.float())
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def exact_sum(values: Float[Tensor, "*shape"], dim: int, *, over: tuple[int, ...] = (-2, -1)) -> Float[Tensor, "..."]:
    """Sum along one axis, the same on every processor and in every order of adding.

    The terms are rounded to multiples of a power of two of which all partial sums are exact in float64: to about 52
    binary digits of the largest of them, less the digits of how many there are. For float32 input this rounds nothing
    unless terms differ by more than a factor of 2^20.

    Args:
        values: floating point, finite.
        dim: the axis that is summed.
        over: the axes of one image; its largest entry sets the digits, so that images do not depend on one another.

    Returns:
        float64, without the axis.

    Examples:
        >>> exact_sum(torch.tensor([[0.1, 1.0], [0.2, 1.0]]), 0).tolist()
        [0.30000000447034836, 2.0]
    """
    wide = precise(values)
    if wide.numel() == 0:
        return wide.sum(dim)
    largest = wide.abs().amax(over, keepdim=True)
    terms = max(1, values.shape[dim])
    digits = _BITS - (terms - 1).bit_length()
    shift = (digits - torch.frexp(largest).exponent).clamp(-1000, 1000)
    total = wide.mul(power_of_two(shift)).round_().sum(dim, keepdim=True)
    return (total * power_of_two(-shift)).squeeze(dim)


def lowest_best(scores: Float[Tensor, "b n"], slack: float | Float[Tensor, "#b 1"]) -> Int[Tensor, " b"]:
    """The lowest index whose score is at most `slack` below the largest of its row.

    Examples:
        >>> lowest_best(torch.tensor([[1.0, 3.0, 3.5]]), 0.5)
        tensor([1])
    """
    return (scores >= scores.amax(1, keepdim=True) - slack).to(torch.uint8).argmax(1)


def lowest_of(scores: NDArray[np.floating[Any]], slack: float) -> int:
    """`lowest_best` for one row in NumPy.

    Examples:
        >>> lowest_of(np.array([1.0, 3.0, 3.5]), 0.5)
        1
    """
    return int((scores >= scores.max() - slack).argmax())
