r"""FitPrune: in every layer drop the image tokens that matter least to themselves and to the text.

From one layer's attention with the *maximum* over heads: $\mathrm{self}_i$ = sum over image rows divided by n,
$\mathrm{cross}_i$ = sum over the rows of the text after the image. The `delete` tokens with the smallest
$\mathrm{self}_i \cdot \mathrm{cross}_i$ go, right after that layer's attention. How many per layer comes from
tables that were fitted offline.

Paper: FitPrune, AAAI 2025 (arXiv 2409.10197). Checked against ywh187/FitPrune, commit
36bb1160d77a3e29a58d3fdc0700f86f03b5c5d6 (the ranking core). Not covered: the offline fit and its tables. The fit
uses the mean over text rows and an intersection of two sets, inference the product above: related but not the same
rule.

Defects of the authors' program: 576 and 35 are written into it. None is in the selection.

Deviations: scores in float32; of equal tokens the one with the lowest index is kept.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import check_count, top, working

__all__ = ["FitPruneScores", "fitprune", "fitprune_scores"]


class FitPruneScores(NamedTuple):
    """The two halves of FitPrune's score.

    Attributes:
        self_score: float (n,), attention received from image tokens.
        cross_score: float (n,), attention received from text tokens.
    """

    self_score: Float[Tensor, " n"]
    cross_score: Float[Tensor, " n"]


def fitprune_scores(attn_visual_cols: Float[Tensor, "h r n"], *, n_image: int) -> FitPruneScores:
    """Attention that each image token receives, maximum over heads.

    Args:
        attn_visual_cols: (heads, n_image + n_text, n_image), rows image then text, columns image.
        n_image: number of image tokens.
    """
    if attn_visual_cols.shape[2] != n_image or attn_visual_cols.shape[1] < n_image:
        raise ValueError(
            f"fitprune: attn_visual_cols must be (heads, {n_image} + text, {n_image}), "
            f"got {tuple(attn_visual_cols.shape)}"
        )
    strongest = working(attn_visual_cols).amax(0)
    return FitPruneScores(strongest[:n_image].sum(0) / n_image, strongest[n_image:].sum(0))


def fitprune(attn_visual_cols: Float[Tensor, "h r n"], *, n_image: int, delete: int) -> Int[Tensor, " k"]:
    """The image tokens that survive one layer, ascending.

    Args:
        attn_visual_cols: (heads, n_image + n_text, n_image), rows image then text, columns image.
        n_image: number of image tokens present.
        delete: how many go, 0 to n_image - 1.

    Raises:
        ValueError: when the shape does not fit or delete is out of range.

    Examples:
        >>> import torch
        >>> fitprune(torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.1]]]), n_image=2, delete=1)
        tensor([0])
    """
    check_count("fitprune", "delete", delete, n_image - 1, lowest=0)
    scores = fitprune_scores(attn_visual_cols, n_image=n_image)
    return top(scores.self_score * scores.cross_score, n_image - delete)[0]
