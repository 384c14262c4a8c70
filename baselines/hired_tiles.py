r"""HiRED on images in tiles: one budget for all tiles, shared by what the first layer attends to.

$total = \lfloor N \cdot keep \rfloor$ of the N tokens that are no newlines. Tile 0, the whole image with n tokens, gets
$\min(\lfloor total \cdot \alpha \rfloor, n)$; the other tiles share the rest in proportion to how many of the
$\lfloor n (1 - \alpha) \rfloor$ tokens of tile 0 with the largest CLS attention *of the first layer* lie in their part
of the image, rounded down. Each tile keeps its largest by CLS attention, heads summed, of the layer whose output the
model uses. Newline tokens are kept always and do not count.

Paper: HiRED, AAAI 2025 (arXiv 2408.10945). Checked against hasanar1f/HiRED, commit
42be984e471f8523b5dfc586d4322f7f30a1ee72, through `tokenprune.baselines.hired_next`, which the rule equals where the
model cuts no padding away.

Defects of the authors' program, reproduced by `official=True`:
- The parts of tile 0 are contiguous runs of its raster, i.e. strips of rows, and not what the other tiles show.

Deviations: float32, ties to the lowest index. Tokens that the model cut away as padding around the image are no
candidates and do not count, where the program lets tiles spend their budget on them. At least one token of tile 0 is
kept.
"""

from math import isqrt

import torch
from jaxtyping import Int
from torch import Tensor

from tokenprune.baselines.scoring import as_given, exact_sum, top
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import Share, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLS_ATTENTION, TILE_GRID, TILES, WHOLE_IMAGE
from tokenprune.core.strategy import Stage
from tokenprune.core.tokens import Tokens

__all__ = ["HiREDNext"]


FIRST_ATTENTION = CLS_ATTENTION.at(0)
"""Attention of the CLS token in the tower's first layer."""


@strategy("hired_next", paper="HiRED, AAAI 2025, arXiv 2408.10945")
class HiREDNext(Stage):
    """Keep the patches with the largest CLS attention, a budget shared among tiles (HiRED's rule for LLaVA-NeXT).

    Definition, paper's code and deviations: `tokenprune.baselines.hired_tiles`.

    Args:
        keep: tokens (int) or share (float) of the image's tokens without newlines, rounded down; the authors' default
            is 0.2. A few of them stay unspent.
        alpha: share of the budget for tile 0, in [0, 1].
        official: share among the other tiles by strips of rows, as the authors' program does.

    Raises:
        ValueError: when `alpha` is no share; or, when selecting, when there is no tile 0.

    Examples:
        >>> tiles = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, -1])
        >>> attention = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6, 0.0]])
        >>> tokens = Tokens(
        ...     torch.zeros(9, 2),
        ...     signals={TILES: tiles, TILE_GRID: (1, 2), CLS_ATTENTION: attention, FIRST_ATTENTION: attention},
        ... )
        >>> HiREDNext(keep=4).select(tokens).indices
        tensor([2, 3, 4, 6, 8])
    """

    keep: Keep
    alpha: Share = 0.5
    official: bool = False
    needs = (WHOLE_IMAGE, CLS_ATTENTION, FIRST_ATTENTION, TILES.strict(), TILE_GRID.strict())

    def requested(self, tokens: Tokens) -> int | None:
        """Answer None: rounding down leaves tokens unspent, and newline tokens come on top."""
        return None

    def choose(self, tokens: Tokens) -> Choice:
        """Share the budget among the tiles, and rank in each."""
        tiles, grid = tokens[TILES], tokens[TILE_GRID]
        first, last = tokens[FIRST_ATTENTION], tokens[CLS_ATTENTION]
        rows = [(tiles == number).nonzero().flatten() for number in range(grid[0] * grid[1] + 1)]
        if not len(rows[0]):
            raise ValueError(
                "HiREDNext: Tokens.tiles names no token of tile 0, the whole image; choose another strategy"
            )
        scores, available = exact_sum(last, -2), sum(map(len, rows))
        total = (
            min(keep_count(self.keep, available), available)
            if isinstance(self.keep, int)
            else int(available * self.keep)
        )
        full = max(min(int(total * self.alpha), len(rows[0])), 1)
        marked = top(exact_sum(first, -2)[rows[0]], int(len(rows[0]) * (1 - self.alpha)))[0]
        counts = _parts(marked, len(rows[0]), grid, self.official).bincount(minlength=grid[0] * grid[1])
        budgets = (counts / counts.sum().clamp_min(1) * max(total - full, 0)).int().tolist()
        kept = [(tiles == -1).nonzero().flatten()]
        for mine, budget in zip(rows, [full, *budgets], strict=True):
            kept.append(mine[top(scores[mine], min(budget, len(mine)))[0]])
        return Choice(torch.cat(kept).sort().values, scores=as_given(scores, tokens.visual))


def _parts(places: Int[Tensor, " k"], n: int, grid: tuple[int, int], official: bool) -> Int[Tensor, " k"]:
    """The part of the image, counted row by row, in which places of the raster of tile 0 lie."""
    side = isqrt(n)
    if official or side * side != n:
        return places * (grid[0] * grid[1]) // n
    return (places // side * grid[0] // side) * grid[1] + places % side * grid[1] // side
