"""What the baselines share: working precision, unit rows, stable ranking, outliers.

Scores that decide are in float64 (`exact_sum`, `unit64`): whatever processor and batch, the same tokens are chosen.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.kernels import top_k as top
from tokenprune.kernels.ties import TIED, as_given, exact_sum, unit64

__all__ = [
    "TIED",
    "as_given",
    "check_count",
    "exact_sum",
    "head_mean",
    "outlier_count",
    "top",
    "unit",
    "unit64",
    "working",
]


def working(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in the precision that scores are computed in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def head_mean(attention: Float[Tensor, "*b h n"]) -> Float[Tensor, "*b n"]:
    """Mean over heads in float64, the same in whatever order the heads are added.

    Examples:
        >>> head_mean(torch.tensor([[0.25, 0.5], [0.75, 0.5]])).tolist()
        [0.5, 0.5]
    """
    return exact_sum(attention, -2) / attention.shape[-2]


def unit(x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Rows scaled to Euclidean length 1, in working precision; a zero row stays zero.

    Examples:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = working(x).contiguous()  # products of equal numbers in another layout may round differently
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def outlier_count(values: Float[Tensor, "*shape"]) -> int:
    """How many values lie above Q3 + 1.5 (Q3 - Q1), with linearly interpolated quartiles of all values pooled.

    Examples:
        >>> outlier_count(torch.tensor([1.0, 1.0, 2.0, 2.0, 9.0]))
        1
    """
    quartiles = torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device)
    low, high = values.flatten().quantile(quartiles)
    rounding = TIED * values.abs().max() if values.dtype == torch.float64 else 0.0
    return int((values > high + 1.5 * (high - low) + rounding).sum())


def check_count(owner: str, parameter: str, value: object, highest: int, *, lowest: int = 1) -> None:
    """Raise an error that names owner, parameter and value unless it is an int from `lowest` to `highest`."""
    wanted = f"{owner}: {parameter} must be an int from {lowest} to {highest}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{wanted}, got {value!r} of type {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{wanted}, got {value}")
