r"""FasterVLM: keep the patches that the vision tower's CLS token attends to most.

$s_i = \operatorname{mean}_h A^{h}_{\mathrm{CLS}, i}$ in the last but one CLIP layer; the largest stay, in raster
order, each tile on its own.

Paper: FasterVLM, arXiv 2412.01818v1. Checked against Theia-4869/FasterVLM, commit
f5d5f12037e105a51865ecb4b28a73cd86eb4921.

Deviations: scores in float64, ties to the lowest index (float16 attention has real ties, whose order the program
leaves open). Several tiles (LLaVA-NeXT): the core handles them, `keep` each; the strategy takes one raster.
"""

from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import as_given, check_count, head_mean, top
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.signals import CLS_ATTENTION
from tokenprune.core.strategy import Scoring
from tokenprune.core.tokens import Tokens

__all__ = ["FasterVLM", "fastervlm", "fastervlm_score"]


def fastervlm_score(cls_attention: Float[Tensor, "*b h n"]) -> Float[Tensor, "*b n"]:
    """Mean over heads of the CLS token's attention to each patch."""
    return as_given(head_mean(cls_attention), cls_attention)


def fastervlm(cls_attention: Float[Tensor, "*b h n"], keep: int) -> Int[Tensor, "*b k"]:
    """The `keep` patches of each tile with the largest mean CLS attention, ascending.

    Args:
        cls_attention: (..., heads, n), the CLS row without its own column.
        keep: number of patches per tile, 1 to n.

    Examples:
        >>> import torch
        >>> fastervlm(torch.tensor([[[0.1, 0.6, 0.3], [0.3, 0.2, 0.5]]]), 2)
        tensor([[1, 2]])
    """
    check_count("fastervlm", "keep", keep, cls_attention.shape[-1])
    return top(head_mean(cls_attention), keep)[0]


@strategy("fastervlm", paper="FasterVLM, arXiv 2412.01818v1")
class FasterVLM(Scoring):
    """Keep the patches with the largest CLS attention in the vision tower (FasterVLM, arXiv 2412.01818v1).

    Definition, paper's code and deviations: `tokenprune.baselines.fastervlm`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).

    Examples:
        >>> import torch
        >>> tokens = Tokens(torch.zeros(3, 2), signals={CLS_ATTENTION: torch.tensor([[0.1, 0.7, 0.2]])})
        >>> FasterVLM(keep=1).select(tokens).indices
        tensor([1])
    """

    keep: Keep
    needs = (CLS_ATTENTION,)

    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """Attention of the CLS token over heads."""
        return head_mean(tokens[CLS_ATTENTION])
