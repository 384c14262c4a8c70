"""Control for the alignment stage: its score without the text."""

import torch
from jaxtyping import Float
from torch import Tensor

from tokenprune.alignment import alignment_score
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.strategy import Scoring
from tokenprune.core.tokens import Tokens


@strategy("smallest_norm")
class SmallestNorm(Scoring):
    r"""Keep the tokens with the smallest norms: the default alignment score with the text taken out.

    $\alpha_i=-\lVert v_i-\bar t\rVert^2+\mathrm{const}$ with $\bar t=0$. Where `MIAlignment` does not beat it, the
    alignment stage does not read the text to any use.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).

    Examples:
        >>> SmallestNorm(keep=2).select(Tokens(torch.tensor([[2.0], [-1.0], [5.0]]))).indices
        tensor([0, 1])
    """

    keep: Keep

    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """The alignment score with an empty text."""
        nothing = torch.zeros(1, tokens.visual.shape[1], dtype=tokens.visual.dtype, device=tokens.visual.device)
        return alignment_score(tokens.visual, nothing)
