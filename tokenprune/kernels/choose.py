"""Which way of selecting is fastest for given sizes, from measurements: benchmarks/results/selection_routes.csv."""

from typing import Literal, TypeAlias

import torch

Route: TypeAlias = Literal["auto", "host", "torch", "triton", "lazy"]

MATRIX_BYTES = 1 << 30
"""No more similarity matrices than this at once; a single one beyond it is not made at all."""

TOGETHER_BYTES = 1 << 25
"""On a CPU: matrices of images that are picked from side by side. What leaves the cache gains nothing."""

# A matrix-vector product reads every token once for one row, a matrix product reuses it for all rows: one row alone
# costs as much as 20 to 30 rows of the matrix.
_ROWS_WORTH_THE_MATRIX = 1 / 24


def choose(n: int, keep: int, device: torch.device, *, itemsize: int = 4) -> Route:
    """The route for one image, or for a batch of such images.

    "host": matrix, loop in NumPy. "torch": matrix, loop in torch. "triton": matrix, fused loop. "lazy": no matrix.

    Args:
        n: number of tokens.
        keep: number of picks.
        device: where the tokens are.
        itemsize: bytes per entry of the matrix.

    Examples:
        >>> choose(576, 64, torch.device("cpu")), choose(20_000, 64, torch.device("cpu"))
        ('host', 'lazy')
    """
    if n * n * itemsize > MATRIX_BYTES:
        return "lazy"
    if device.type == "cpu":
        return "lazy" if keep <= n * _ROWS_WORTH_THE_MATRIX else "host"
    from tokenprune.kernels import fused

    return "triton" if device.type == "cuda" and fused.supports(n, itemsize) else "torch"
