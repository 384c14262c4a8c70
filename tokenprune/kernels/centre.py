"""Squared distances of the tokens of several images from one point each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK_ENTRIES = 1 << 16  # of a block of rows: 512 KiB in float64 stay in the cache while they are worked on


def squared_distances(
    images: Sequence[Float[Tensor, "n d"]], centre: Float[Tensor, "b d"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b n"]:
    r"""$\lVert s\,x_i - c\rVert^2$ for every row, from the differences themselves, in the centres' precision.

    On a CPU blocks of rows go through one small buffer, so every token is read once and nothing of the size of an
    image is written; on other devices the batch is one operation.

    Args:
        images: (n, d) each, all of one size, any floating dtype.
        centre: (b, d), one point per image.
        scale: (b,), a factor for each image.

    Examples:
        >>> squared_distances([torch.tensor([[3.0, 4.0], [1.0, 0.0]])], torch.tensor([[1.0, 0.0]]), torch.ones(1))
        tensor([[20.,  0.]])
    """
    dtype, away = centre.dtype, centre.neg()
    if centre.device.type != "cpu":
        together = torch.stack(list(images)).to(dtype)
        return torch.addcmul(away[:, None], together, scale[:, None, None]).square_().sum(-1)
    n, d = images[0].shape
    rows = max(1, min(n, _BLOCK_ENTRIES // max(1, d)))
    buffer = torch.empty((rows, d), dtype=dtype)
    result = torch.empty((len(images), n), dtype=dtype)
    for image, point, factor, found in zip(images, away, scale, result, strict=True):
        for top in range(0, n, rows):
            block = image[top : top + rows]
            difference = buffer[: len(block)].copy_(block).mul_(factor).add_(point)
            # A length in one pass; squared again it is wrong by no more than another sum of squares would be.
            torch.square(torch.linalg.vector_norm(difference, dim=-1), out=found[top : top + rows])
    return result
