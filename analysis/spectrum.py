"""How many directions a set of vectors really uses: effective rank and participation ratio."""

import torch
from jaxtyping import Float
from torch import Tensor


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows scaled to length 1 in float64; a zero row stays zero."""
    rows = x.detach().double()
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1.0)


def effective_rank(x: Float[Tensor, "n d"]) -> float:
    r"""Effective rank: $\exp\big(-\sum_i p_i\ln p_i\big)$ with $p_i=\sigma_i/\sum_j\sigma_j$ (Roy and Vetterli, 2007).

    Between 1 (all rows on one line) and min(n, d) (orthogonal rows of equal length); 0 when all rows are zero. Nothing
    is centred or scaled here: do that before, where it is wanted.

    Args:
        x: (n, d), any floating dtype; computed in float64.

    Examples:
        >>> round(effective_rank(torch.eye(4)), 6)
        4.0
    """
    values = _singular_values(x, "effective_rank")
    shares = values / values.sum() if float(values.sum()) > 0.0 else values
    return float(torch.special.entr(shares).sum().exp()) if float(shares.sum()) > 0.0 else 0.0


def participation_ratio(x: Float[Tensor, "n d"]) -> float:
    r"""Participation ratio of the spectrum: $\big(\sum_i\sigma_i^2\big)^2/\sum_i\sigma_i^4$.

    Like `effective_rank`, but ruled by the few largest directions. 0 when all rows are zero.

    Args:
        x: (n, d), any floating dtype; computed in float64.

    Examples:
        >>> round(participation_ratio(torch.eye(4)), 6)
        4.0
    """
    values = _singular_values(x, "participation_ratio")
    largest = float(values.max()) if values.numel() else 0.0
    if largest == 0.0:
        return 0.0
    energy = (values / largest).square()
    return float(energy.sum().square() / energy.square().sum())


def _singular_values(x: Float[Tensor, "n d"], owner: str) -> Float[Tensor, " r"]:
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"{owner}: x must be (n, d) with at least one row, got {tuple(x.shape)}")
    rows = x.detach().double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{owner}: x holds NaN or infinity; look for the layer that made it")
    return torch.linalg.svdvals(rows)
