r"""DivPrune: keep the tokens whose smallest distance to one another is large (greedy max-min diversity).

With $D_{ij} = 1 - \cos(x_i, x_j)$: first $\arg\max_i \min_{j \ne i} D_{ij}$, then repeatedly the token outside the
kept set $S$ with the largest $\min_{j \in S} D_{ij}$. Ties go to the lowest index.

Paper: DivPrune, CVPR 2025 (arXiv 2503.02175). Checked against vbdi/divprune, commit
799e2d950aa01ba7860907f5a6d86061f885dca6. This is an own implementation from the rule in words; that project's
licence is CC BY-NC.

Defects of the authors' program, reproduced by `official=True`:
- A picked token stays a candidate. Once every remaining distance is 0 (duplicates) an index comes again, and the
  language model gets the same token several times. Default: a token is picked once.
- A zero row has no direction: its distances are NaN, it is picked first and then nothing works. Default: cosine 0.

Deviations: distances that decide in float64 (the program uses the model's dtype, normally float16). The program
reads the token count from the ratio, `round(ratio * n)` with halves to even (`divprune_count`); strategies here
round half up. Cost O(n^2 d + n k): the running minimum is updated, where the program gathers rows again at each
step.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import check_count, unit, working
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import EQUIVARIANT, PLAIN, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import pick_each
from tokenprune.kernels.images import Start

__all__ = ["DivPrune", "cosine_distance", "divprune", "divprune_count", "max_min"]


def divprune_count(n: int, ratio: float) -> int:
    """The authors' budget: `round(ratio * n)`, halves to even.

    Examples:
        >>> [divprune_count(576, ratio) for ratio in (0.098, 0.1111, 0.2222)]
        [56, 64, 128]
    """
    return round(ratio * n)


def cosine_distance(x: Float[Tensor, "n d"], *, official: bool = False) -> Float[Tensor, "n n"]:
    """1 - cosine between all rows; a zero row has cosine 0 with every row (`official`: NaN)."""
    x = working(x).contiguous()
    rows = x / x.norm(dim=-1, keepdim=True) if official else unit(x)
    return 1 - rows @ rows.T


def divprune(x: Float[Tensor, "n d"], keep: int, *, official: bool = False) -> Int[Tensor, " k"]:
    """Greedy max-min selection on cosine distance.

    Args:
        x: (n, d), visual tokens as they enter the language model.
        keep: number of picks, 1 to n.
        official: reproduce the authors' program, which may return an index more than once (see the file's docstring).

    Returns:
        int64 (keep,), in pick order.

    Raises:
        ValueError: when keep is not in 1..n.

    Examples:
        >>> divprune(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), 3)
        tensor([3, 0, 2])
        >>> divprune(torch.ones(4, 2), 3), divprune(torch.ones(4, 2), 3, official=True)
        (tensor([0, 1, 2]), tensor([0, 0, 0]))
    """
    check_count("divprune", "keep", keep, x.shape[0])
    if official:
        return max_min(cosine_distance(x, official=True)[None], keep, official=True)[0]
    return pick_each([x], [keep], objective="min", starts=["min"])[0]


def max_min(distance: Float[Tensor, "b n n"], keep: int, *, official: bool = False) -> Int[Tensor, "b k"]:
    """Greedy max-min selection on distance matrices, several images side by side; see `divprune`.

    Examples:
        >>> max_min(torch.tensor([[[0.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]]]), 2)
        tensor([[2, 0]])
    """
    batch, n, _ = distance.shape
    if not official:
        starts: list[Start] = ["min"] * batch
        picked = pick_each(list(distance), [keep] * batch, objective="min", distance="precomputed", starts=starts)
        return torch.stack(picked)
    picks = torch.zeros((batch, keep), dtype=torch.int64, device=distance.device)
    if n == 1:
        return picks
    score = distance.topk(2, dim=1, largest=False).values[:, 1]
    nearest = torch.full_like(score, torch.inf)
    image = torch.arange(batch, device=distance.device)
    for step in range(keep):
        pick = score.argmax(1)
        picks[:, step] = pick
        nearest = torch.minimum(nearest, distance[image, pick])
        score = nearest
    return picks


@strategy("divprune", paper="DivPrune, CVPR 2025, arXiv 2503.02175")
class DivPrune(Stage):
    """Keep the tokens that are far from one another: greedy max-min cosine distance (DivPrune, CVPR 2025).

    Definition, paper's code and deviations: `tokenprune.baselines.divprune`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        official: reproduce the authors' program on duplicate tokens. What it repeats is kept once here, so fewer than
            `keep` tokens may come out.

    Examples:
        >>> DivPrune(keep=2).select(Tokens(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))).indices
        tensor([0, 2])
    """

    keep: Keep
    official: bool = False

    @property
    def promises(self) -> frozenset[Promise]:
        """What rounding noise decides with `official` does not follow a permutation."""
        return PLAIN if self.official else EQUIVARIANT

    def requested(self, tokens: Tokens) -> int | None:
        """Count the budget; None with `official`, which may repeat tokens and so keep fewer."""
        return None if self.official else super().requested(tokens)

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Pick greedily by the largest smallest distance."""
        keeps = [min(keep_count(self.keep, tokens.original), tokens.n) for tokens in batch]
        if self.official:
            orders = [divprune(tokens.visual, keep, official=True) for tokens, keep in zip(batch, keeps, strict=True)]
            return [Choice(order.unique()) for order in orders]
        starts: list[Start] = ["min"] * len(batch)
        orders = pick_each([tokens.visual for tokens in batch], keeps, objective="min", starts=starts)
        return [Choice.picked(order) for order in orders]
