"""Control: average pooling of the token grid, the stand-in for feeding a smaller image."""

from functools import lru_cache
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import GRID, WHOLE_IMAGE
from tokenprune.core.strategy import Stage
from tokenprune.core.tokens import Tokens


@lru_cache(maxsize=1024)
def pooled_grid(rows: int, columns: int, keep: int) -> tuple[int, int]:
    """The raster of at most `keep` cells that best fills the budget without distorting the image.

    Among all (r, c) with r <= rows, c <= columns and r c <= keep, the one with the least
    (keep - r c) / keep + |log((r / c) / (rows / columns))| / 2; ties go to fewer rows.

    Examples:
        >>> pooled_grid(24, 24, 64), pooled_grid(24, 24, 128), pooled_grid(16, 16, 300)
        ((8, 8), (11, 11), (16, 16))
    """

    def cost(cell: tuple[int, int]) -> float:
        r, c = cell
        return (keep - r * c) / keep + abs(log(r * columns / (c * rows))) / 2

    choices = [(r, min(columns, keep // r)) for r in range(1, min(rows, keep) + 1)]
    return min(((r, c) for r, widest in choices for c in range(1, widest + 1)), key=cost)


def grid_pool(visual: Float[Tensor, "n d"], grid: tuple[int, int], pooled: tuple[int, int]) -> Float[Tensor, "k d"]:
    """Adaptive average pooling of a token raster, in float32, returned in the input's dtype.

    Args:
        visual: (rows * columns, d), raster order.
        grid: (rows, columns).
        pooled: (r, c), the new raster.

    Returns:
        (r * c, d) in raster order. Cells overlap by one token where r does not divide rows, as in
        `torch.nn.functional.adaptive_avg_pool2d`.
    """
    image = visual.T.reshape(1, visual.shape[1], *grid)
    work = image if image.dtype == torch.float64 else image.float()
    # Torch adds up a cell before it divides. A power of two keeps the sum of very large numbers in range; it is 1 for
    # all others, and changes no digit.
    headroom = grid[0] * grid[1]
    room = torch.finfo(work.dtype).max / (4 * headroom)
    scale = torch.where(work.abs().amax() > room, 2.0 ** -headroom.bit_length(), 1.0).to(work.dtype)
    return (adaptive_avg_pool2d(work * scale, pooled) / scale).flatten(2)[0].T.to(visual.dtype).contiguous()


@strategy("grid_pool")
class GridPool(Stage):
    """Average-pool the token grid to about `keep` tokens: what a smaller image would have given.

    Plain downsampling beats many published methods (arXiv 2510.07143), so it belongs in every table. The number kept
    is the largest well-shaped raster within the budget (`pooled_grid`), never more. A pooled token takes the position
    of the token at the middle of its cell.

    Args:
        keep: tokens (int) or share of the image's original tokens (float); an upper limit.

    Raises:
        ValueError: in `select`, when the tokens are no complete raster (put GridPool first in a pipeline).

    Examples:
        >>> GridPool(keep=5).select(Tokens(torch.zeros(16, 2), grid=(4, 4))).indices
        tensor([ 5,  7, 13, 15])
    """

    keep: Keep
    needs = (GRID, WHOLE_IMAGE)
    yields = "merged"

    def requested(self, tokens: Tokens) -> int | None:
        """Count the cells of the pooled raster."""
        if tokens.grid is None:
            return None
        rows, columns = pooled_grid(*tokens.grid, keep_count(self.keep, tokens.original))
        return rows * columns

    def choose(self, tokens: Tokens) -> Choice:
        """Average the cells."""
        rows, columns = tokens[GRID]
        r, c = pooled_grid(rows, columns, keep_count(self.keep, tokens.original))
        middle_row = torch.arange(1, 2 * r, 2) * rows // (2 * r)
        middle_column = torch.arange(1, 2 * c, 2) * columns // (2 * c)
        indices = (middle_row[:, None] * columns + middle_column).flatten().to(tokens.visual.device)
        return Choice(indices, features=grid_pool(tokens.visual, (rows, columns), (r, c)))
