"""Control: tokens spread evenly over the image."""

from math import sqrt

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import GRID
from tokenprune.core.strategy import Stage
from tokenprune.core.tokens import Tokens


def uniform_grid(rows: int, columns: int, k: int) -> Int[Tensor, " k"]:
    """k cells of a raster, evenly spaced in both directions, ascending.

    The k cells are put on r lines, r as near as possible to sqrt(k rows/columns) so that the spacing is alike in both
    directions; lines differ by at most one cell, and cells lie in the middle of equal intervals.

    Args:
        rows: height of the raster.
        columns: width of the raster.
        k: number of cells, 1 <= k <= rows * columns.

    Examples:
        >>> uniform_grid(4, 4, 4)
        tensor([ 5,  7, 13, 15])
    """
    lines = round(sqrt(k * rows / columns))
    lines = max(-(-k // columns), min(lines, rows, k), 1)
    cells: list[int] = []
    for line in range(lines):
        in_line = (line + 1) * k // lines - line * k // lines
        row = (2 * line + 1) * rows // (2 * lines)
        cells.extend(row * columns + column for column in evenly_spaced(columns, in_line))
    return torch.tensor(cells)


def evenly_spaced(n: int, k: int) -> list[int]:
    """k of the numbers 0..n-1 in the middle of k equal intervals, ascending.

    Examples:
        >>> evenly_spaced(9, 3)
        [1, 4, 7]
    """
    return [(2 * j + 1) * n // (2 * k) for j in range(k)]


@strategy("uniform_grid")
class UniformGrid(Stage):
    """Keep tokens evenly spaced over the image, whatever they hold: the control for coverage.

    After another stage, when only a subset is left, every (n/k)-th survivor in raster order is kept.

    Args:
        keep: tokens (int) or share of the image's original tokens (float); any number, not only squares.

    Examples:
        >>> UniformGrid(keep=4).select(Tokens(torch.zeros(16, 2), grid=(4, 4))).indices
        tensor([ 5,  7, 13, 15])
    """

    keep: Keep
    needs = (GRID,)

    def choose(self, tokens: Tokens) -> Choice:
        """Space the tokens evenly over the raster, or over what is left of it."""
        k = self.count(tokens)
        if tokens.n == tokens.original:
            rows, columns = tokens[GRID]
            kept = uniform_grid(rows, columns, k)
        else:
            kept = torch.tensor(evenly_spaced(tokens.n, k))
        return Choice(kept.to(tokens.visual.device))
