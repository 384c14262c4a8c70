r"""VisPruner: part of the budget by CLS attention, the rest by weeding near-duplicates out of what remains.

With $T$ tokens to keep, $\lfloor T \rho \rfloor$ patches of largest mean CLS attention are *important*. The others,
in order of falling attention, are thinned to $T - \lfloor T \rho \rfloor$: while there are too many, split them
alternately into A (1st, 3rd, ...) and B (2nd, 4th, ...), score each member of A by its largest cosine to B, and
drop the $\min(8, \text{surplus})$ members of A that score highest; next come the survivors of A by falling score,
then B.

Paper: VisPruner, ICCV 2025 (a later version of arXiv 2412.01818). Checked against Theia-4869/VisPruner, commit
aefa01adc7c7ce6334e880c88225e90cede760d1.

Defects of the authors' program: it stops with an IndexError when an odd number of patches is to be thinned, or when
more than half of a small remainder must go. Here A has one member more in the odd case, and at most all of A is
dropped in a round. Wherever the program runs the selection is the same, so there is no `official` switch.

Deviations: scores and cosines in float64, because float32 cannot tell the cosines of near-duplicates apart; ties to
the earlier place in the list.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, check_count, head_mean, top, unit64
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Share, strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLS_ATTENTION, VISION_STATES
from tokenprune.core.strategy import EQUIVARIANT, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import gram
from tokenprune.kernels.rank import ranking

__all__ = ["VisPruner", "vispruner", "weed_duplicates"]

_PER_ROUND = 8


def weed_duplicates(
    features: Float[Tensor, "b n c"], ranked: Int[Tensor, "b m"], keep: int, *, per_round: int = _PER_ROUND
) -> Int[Tensor, "b k"]:
    """Drop near-duplicates from a ranked list until `keep` remain (see the file's docstring).

    Args:
        features: (b, n, c), what cosines are taken of.
        ranked: int64 (b, m), indices of the candidates, most important first.
        keep: how many remain, 0 to m.
        per_round: at most this many are dropped per round.

    Returns:
        int64 (b, keep), in the order in which the last round leaves them.

    Examples:
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 0.0]]])
        >>> weed_duplicates(x, torch.tensor([[0, 1, 2, 3]]), 3)
        tensor([[2, 1, 3]])
    """
    check_count("weed_duplicates", "keep", keep, ranked.shape[1], lowest=0)
    if keep == 0:
        return ranked[:, :0]
    image = torch.arange(ranked.shape[0], device=ranked.device)[:, None]
    candidates = unit64(features[image, ranked])  # (b, m, c)
    cosines = [gram(rows) for rows in candidates]  # once: every round reads a part of it
    left = torch.arange(ranked.shape[1], device=ranked.device).expand(ranked.shape)  # places among the ranked
    while left.shape[1] > keep:
        a, b = left[:, ::2], left[:, 1::2]
        drop = min(per_round, left.shape[1] - keep, a.shape[1])
        parts = zip(cosines, a, b, strict=True)
        likeness = torch.stack([of.index_select(0, i).index_select(1, j).amax(1) for of, i, j in parts])
        order = ranking(likeness, TIED)
        left = torch.cat([a.gather(1, order[:, drop:]), b], dim=1)
    return ranked.gather(1, left)


def vispruner(
    cls_attention: Float[Tensor, "b h n"],
    image_features: Float[Tensor, "b n c"],
    keep: int,
    *,
    important_ratio: float = 0.5,
) -> Int[Tensor, "b k"]:
    """Important patches plus diverse patches of each tile, ascending.

    Args:
        cls_attention: (b, heads, n), CLS row of the last but one layer of the vision tower.
        image_features: (b, n, c), that layer's patch states, before the projector.
        keep: number of patches per tile, 1 to n.
        important_ratio: share of `keep` chosen by attention alone, in [0, 1]; the count is rounded down.

    Raises:
        ValueError: when keep is not in 1..n or important_ratio not in [0, 1].

    Examples:
        >>> attention = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]])
        >>> x = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]]])
        >>> vispruner(attention, x, 2)
        tensor([[0, 2]])
    """
    check_count("vispruner", "keep", keep, cls_attention.shape[-1])
    if not 0 <= important_ratio <= 1:
        raise ValueError(f"vispruner: important_ratio must be in [0, 1], got {important_ratio}")
    important = int(keep * important_ratio)
    ranked = top(head_mean(cls_attention), cls_attention.shape[-1])[1]
    diverse = weed_duplicates(image_features, ranked[:, important:], keep - important)
    return torch.cat([ranked[:, :important], diverse], dim=1).sort(dim=1).values


@strategy("vispruner", paper="VisPruner, ICCV 2025, arXiv 2412.01818")
class VisPruner(Stage):
    """Keep the patches with the largest CLS attention and, of the others, those that are no near-duplicates.

    VisPruner, ICCV 2025. Definition, paper's code and deviations: `tokenprune.baselines.vispruner`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        important_ratio: share of the budget chosen by attention alone, in [0, 1]; the authors use 0.5 and 0.75.

    Examples:
        >>> attention = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]])
        >>> tokens = Tokens(x, signals={CLS_ATTENTION: attention, VISION_STATES: x})
        >>> VisPruner(keep=2).select(tokens).indices
        tensor([0, 2])
    """

    keep: Keep
    important_ratio: Share = 0.5
    needs = (CLS_ATTENTION, VISION_STATES)
    promises = EQUIVARIANT

    def choose(self, tokens: Tokens) -> Choice:
        """Choose by attention, then drop near-duplicates."""
        kept = vispruner(
            tokens[CLS_ATTENTION][None],
            tokens[VISION_STATES][None],
            self.count(tokens),
            important_ratio=self.important_ratio,
        )
        return Choice(kept[0])
