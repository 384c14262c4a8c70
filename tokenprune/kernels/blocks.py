"""Cosines in float64 of a few rows with all, from blocks of rows that stay in the cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.kernels.ties import precise_dtype, unit64

_BLOCK_ENTRIES = 1 << 17  # 1 MiB in float64


def cosines_with(x: Float[Tensor, "n d"], chosen: Int[Tensor, " r"]) -> Float[Tensor, "r n"]:
    """Cosines of the chosen rows with every row, in the precision that decides; 0 where a row is zero.

    Examples:
        >>> cosines_with(torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([0])).round(decimals=6)
        tensor([[1.0000, 0.8000, 0.0000]], dtype=torch.float64)
    """
    if x.device.type != "cpu" or x.dtype == precise_dtype(x.device):
        rows = unit64(x)
        return rows[chosen] @ rows.T
    n, d = x.shape
    few = unit64(x[chosen])
    result = torch.empty((len(few), n), dtype=torch.float64)
    step = max(1, _BLOCK_ENTRIES // max(1, d))
    buffer = torch.empty((min(n, step), d), dtype=torch.float64)
    for top in range(0, n, step):
        given = x[top : top + step]
        block = buffer[: len(given)].copy_(given)
        lengths = torch.linalg.vector_norm(block, dim=1)
        result[:, top : top + step] = (few @ block.T).div_(lengths.masked_fill_(lengths == 0, 1.0))
    return result
