r"""HiRED: CLS attention decides which patches stay, and how a budget is shared among the tiles of one image.

LLaVA-1.5: $s_i = \sum_h A^h_{\mathrm{CLS}, i}$ in the last but one CLIP layer, the $\lfloor n \cdot rate \rfloor$
largest. LLaVA-NeXT (tile 0 is the whole image, t tiles): of $\lfloor t\, n \cdot rate \rfloor$ tokens tile 0 gets
$\min(\lfloor total \cdot \alpha \rfloor, n)$; the others share the rest in proportion to how many of the $\lfloor n
(1 - \alpha) \rfloor$ patches of tile 0 with the largest CLS attention *of the first layer* lie in their part of the
image, rounded down. Each tile keeps its largest by the last but one layer.

Paper: HiRED, AAAI 2025 (arXiv 2408.10945). Checked against hasanar1f/HiRED, commit
42be984e471f8523b5dfc586d4322f7f30a1ee72.

Defects of the authors' program, reproduced by `official=True`:
- The parts of tile 0 are contiguous runs of its raster, i.e. strips of rows, and not the quadrants that the other
  tiles show. Default: the spatial blocks, `grid_h` x `grid_w`.

Rounding down leaves a few tokens of the budget unspent; that is kept.

Deviations: scores in float64, ties to the lowest index. The program keeps newline tokens always; where there are
any they are not visual tokens here. The strategy takes one raster (the LLaVA-1.5 rule).
"""

from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import as_given, check_count, exact_sum, top
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.signals import CLS_ATTENTION
from tokenprune.core.strategy import Scoring
from tokenprune.core.tokens import Tokens

__all__ = ["HiRED", "HiREDTiles", "hired", "hired_next", "hired_score"]


class HiREDTiles(NamedTuple):
    """What HiRED keeps of an image in tiles.

    Attributes:
        kept_mask: bool (t, n).
        full_budget: tokens of tile 0.
        sub_budget: tokens that the other tiles share.
        tile_budgets: int64 (s,), what each of the s = t - 1 others got.
    """

    kept_mask: Bool[Tensor, "t n"]
    full_budget: int
    sub_budget: int
    tile_budgets: Int[Tensor, " s"]


def hired_score(cls_attention: Float[Tensor, "*b h n"]) -> Float[Tensor, "*b n"]:
    """Sum over heads of the CLS token's attention to each patch."""
    return as_given(exact_sum(cls_attention, -2), cls_attention)


def hired(cls_attention: Float[Tensor, "h n"], keep: int) -> Int[Tensor, " k"]:
    """The patches of one tile with the largest CLS attention, ascending (LLaVA-1.5).

    Args:
        cls_attention: (heads, n), CLS row of the last but one layer without its own column.
        keep: number of patches, 1 to n; the authors' budget is int(n * rate) with rate 0.2.

    Examples:
        >>> hired(torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.2, 0.5]]), 2)
        tensor([1, 2])
    """
    check_count("hired", "keep", keep, cls_attention.shape[-1])
    return top(exact_sum(cls_attention, -2), keep)[0]


def hired_next(
    cls_attention: Float[Tensor, "t h n"],
    cls_attention_first_layer: Float[Tensor, "h n"],
    *,
    rate: float = 0.2,
    alpha: float = 0.5,
    grid_h: int,
    grid_w: int,
    official: bool = False,
) -> HiREDTiles:
    """Patches kept of an image in tiles, the whole image first (LLaVA-NeXT).

    Args:
        cls_attention: (tiles, heads, n), CLS rows of the last but one layer; tile 0 is the whole image.
        cls_attention_first_layer: (heads, n), CLS row of the first layer for tile 0.
        rate: share of all patches to keep, in (0, 1].
        alpha: share of the budget for tile 0, in [0, 1].
        grid_h: rows of tiles; grid_h * grid_w tiles follow tile 0.
        grid_w: columns of tiles.
        official: share by strips of rows, as the authors' program does.

    Raises:
        ValueError: when shares are out of range, the tiles do not match the grid, or tile 0 cannot be cut into it.

    Examples:
        >>> first = torch.tensor([[9.0, 8.0, 0.0, 0.0] * 2 + [0.0] * 8])
        >>> attention = torch.rand(5, 1, 16, generator=torch.Generator().manual_seed(0))
        >>> hired_next(attention, first, rate=0.2, alpha=0.75, grid_h=2, grid_w=2).tile_budgets
        tensor([4, 0, 0, 0])
        >>> hired_next(attention, first, rate=0.2, alpha=0.75, grid_h=2, grid_w=2, official=True).tile_budgets
        tensor([2, 2, 0, 0])
    """
    tiles, _, n = cls_attention.shape
    for parameter, value, fits in (("rate", rate, 0 < rate <= 1), ("alpha", alpha, 0 <= alpha <= 1)):
        if not fits:
            raise ValueError(f"hired_next: {parameter} must be a share, got {value}")
    if tiles != grid_h * grid_w + 1:
        raise ValueError(f"hired_next: a {grid_h} x {grid_w} grid has {grid_h * grid_w + 1} tiles, got {tiles}")
    total = int(tiles * n * rate)
    full = min(int(total * alpha), n)
    sub = min(total - full, (tiles - 1) * n)
    scores = exact_sum(cls_attention, -2)
    marked = torch.zeros(n, device=scores.device)
    marked[top(exact_sum(cls_attention_first_layer, -2), int(n * (1 - alpha)))[1]] = 1
    counts = _parts(marked, grid_h, grid_w, official).sum(-1)
    budgets = (counts / counts.sum().clamp_min(1) * sub).int().long().clamp_max(n)
    ranks = torch.empty_like(scores, dtype=torch.int64)
    places = torch.arange(n, device=scores.device).expand_as(ranks)
    ranks.scatter_(1, scores.sort(dim=1, descending=True, stable=True).indices, places)
    limits = torch.cat([torch.full_like(budgets[:1], full), budgets])
    return HiREDTiles(ranks < limits[:, None], full, sub, budgets)


def _parts(marked: Float[Tensor, " n"], grid_h: int, grid_w: int, official: bool) -> Float[Tensor, "parts size"]:
    n = marked.shape[0]
    if official:
        return marked.reshape(grid_h * grid_w, -1)
    side = isqrt(n)
    if side * side != n or side % grid_h or side % grid_w:
        raise ValueError(
            f"hired_next: {n} patches are no square raster that {grid_h} x {grid_w} tiles cut evenly; "
            "official=True cuts the raster into runs instead"
        )
    blocks = marked.reshape(grid_h, side // grid_h, grid_w, side // grid_w)
    return blocks.transpose(1, 2).reshape(grid_h * grid_w, -1)


@strategy("hired", paper="HiRED, AAAI 2025, arXiv 2408.10945")
class HiRED(Scoring):
    """Keep the patches with the largest CLS attention, heads summed (HiRED, AAAI 2025; its rule for LLaVA-1.5).

    On a single raster this is the selection of FasterVLM. Definition, paper's code and deviations:
    `tokenprune.baselines.hired`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float); the authors' default is 0.2, rounded down.

    Examples:
        >>> tokens = Tokens(torch.zeros(3, 2), signals={CLS_ATTENTION: torch.tensor([[0.1, 0.7, 0.2]])})
        >>> HiRED(keep=1).select(tokens).indices
        tensor([1])
    """

    keep: Keep
    needs = (CLS_ATTENTION,)

    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """Attention of the CLS token over heads."""
        return exact_sum(tokens[CLS_ATTENTION], -2)
