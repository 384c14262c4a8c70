"""Control for the alignment stage: its score without the text."""

import torch

from tokenprune.alignment import alignment_score
from tokenprune.baselines.scoring import TIED, as_given
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import EQUIVARIANT, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import top_k
from tokenprune.kernels.ties import precise


@strategy("smallest_norm")
class SmallestNorm(Stage):
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
    promises = EQUIVARIANT

    def choose(self, tokens: Tokens) -> Choice:
        """Rank by the alignment score with an empty text."""
        nothing = torch.zeros(1, tokens.visual.shape[1], dtype=tokens.visual.dtype, device=tokens.visual.device)
        scores = alignment_score(precise(tokens.visual), nothing)
        indices, order = top_k(scores, self.count(tokens), slack=(TIED * scores.abs().amax())[None])
        return Choice(indices, order=order, scores=as_given(scores, tokens.visual))
