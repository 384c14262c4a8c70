"""Control for the alignment stage: its score without the text."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.alignment import alignment_score
from tokenprune.baselines.scoring import TIED, as_given
from tokenprune.budget import Keep
from tokenprune.kernels import top_k
from tokenprune.kernels.ties import precise
from tokenprune.strategy import PruningStrategy, set_keep
from tokenprune.tokens import Selection, Tokens


@dataclass(frozen=True, repr=False)
class SmallestNorm(PruningStrategy):
    r"""Keep the tokens with the smallest norms: the default alignment score with the text taken out.

    $\alpha_i=-\lVert v_i-\bar t\rVert^2+\mathrm{const}$ with $\bar t=0$. Where `MIAlignment` does not beat it, the
    alignment stage does not read the text to any use.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).

    Examples:
        >>> SmallestNorm(keep=2).select(Tokens(torch.tensor([[2.0], [-1.0], [5.0]]))).indices
        tensor([0, 1])
    """

    name: ClassVar[str] = "smallest_norm"
    summary: ClassVar[str] = "control: the alignment score without the text, so smallest norms first"
    equivariant = True

    keep: Keep

    def __post_init__(self) -> None:
        set_keep(self)

    def _select(self, tokens: Tokens) -> Selection:
        nothing = torch.zeros(1, tokens.visual.shape[1], dtype=tokens.visual.dtype, device=tokens.visual.device)
        scores = alignment_score(precise(tokens.visual), nothing)
        indices, order = top_k(scores, self.count(tokens), slack=(TIED * scores.abs().amax())[None])
        return Selection(indices=indices, total=tokens.n, order=order, scores=as_given(scores, tokens.visual))
