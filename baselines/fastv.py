r"""FastV: after the first layers of the language model, keep the image tokens that the last token attends to.

At layer K: $s_i = \operatorname{mean}_h A^{h}_{\mathrm{last}, i}$ with A the softmaxed attention of layer index K -
1, over the image columns. The largest stay, in raster order, together with every other token. Positions stay the
original ones.

Paper: FastV, ECCV 2024 (arXiv 2403.06764). Checked against pkunlp-icler/FastV, commit
d1659729b5bf1be225e99ee15783deeea80f63b1, lmms-eval and Hugging Face variants.

Defects of the authors' programs, none reproduced, because the first is the caller's `image_start` and the rest are
no matter of selection:
- The paper's scripts take 36 as the first image position where 35 is right (LLaVA-1.5): the first image token is
  always kept and one text token is a candidate.
- The lmms-eval variant runs layer K - 1 twice and stores its keys twice.
- Row 0 of a batch decides for all rows.
- R is the share *removed* in the Hugging Face variant and the share *kept* in the other one (`fastv_count` has
  both).

Deviations: scores in float64, ties to the lowest index.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import as_given, check_count, head_mean, top
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Layer, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.signals import DECODER_ATTENTION
from tokenprune.core.strategy import Scoring
from tokenprune.core.tokens import Tokens

__all__ = ["FastV", "fastv", "fastv_count", "fastv_keep_index", "fastv_score"]


def fastv_count(n: int, *, keep_ratio: float | None = None, prune_ratio: float | None = None) -> int:
    """The authors' budgets: `int(n * keep_ratio)` (lmms-eval) or `round(n * (1 - prune_ratio))` (Hugging Face).

    Args:
        n: number of image tokens.
        keep_ratio: share kept; give exactly one of the two.
        prune_ratio: share removed.

    Examples:
        >>> fastv_count(576, keep_ratio=0.5), fastv_count(576, prune_ratio=0.75)
        (288, 144)
    """
    if (keep_ratio is None) == (prune_ratio is None):
        raise ValueError(f"fastv_count: give either keep_ratio or prune_ratio, got {keep_ratio} and {prune_ratio}")
    return int(n * keep_ratio) if keep_ratio is not None else round(n * (1 - (prune_ratio or 0.0)))


def fastv_score(attn_last_row: Float[Tensor, "*b h l"], *, image_start: int, n_image: int) -> Float[Tensor, "*b n"]:
    """Mean over heads of the last query's attention to the image columns."""
    return as_given(_score(attn_last_row, image_start, n_image), attn_last_row)


def _score(attn_last_row: Float[Tensor, "*b h l"], image_start: int, n_image: int) -> Float[Tensor, "*b n"]:
    return head_mean(attn_last_row[..., image_start : image_start + n_image])


def fastv(attn_last_row: Float[Tensor, "*b h l"], *, image_start: int, n_image: int, keep: int) -> Int[Tensor, "*b k"]:
    """The image tokens to keep, counted from the first image token, ascending.

    Args:
        attn_last_row: (..., heads, l), the last query row of layer K - 1's softmaxed attention.
        image_start: position of the first image token.
        n_image: number of image tokens.
        keep: number of image tokens to keep, 1 to n_image.

    Raises:
        ValueError: when the image does not fit into the row or keep is not in 1..n_image.

    Examples:
        >>> fastv(torch.tensor([[0.4, 0.1, 0.3, 0.2]]), image_start=1, n_image=3, keep=2)
        tensor([1, 2])
    """
    length = attn_last_row.shape[-1]
    check_count("fastv", "image_start", image_start, length - n_image, lowest=0)
    check_count("fastv", "keep", keep, n_image)
    return top(_score(attn_last_row, image_start, n_image), keep)[0]


def fastv_keep_index(kept: Int[Tensor, " k"], *, image_start: int, n_image: int, seq_len: int) -> Int[Tensor, " r"]:
    """Positions of the whole sequence that survive: all outside the image, and the image tokens kept.

    These are also the position ids after layer K.

    Examples:
        >>> fastv_keep_index(torch.tensor([1]), image_start=1, n_image=3, seq_len=6)
        tensor([0, 2, 4, 5])
    """
    positions = torch.arange(seq_len, device=kept.device)
    return torch.cat([positions[:image_start], kept + image_start, positions[image_start + n_image :]])


@strategy("fastv", paper="FastV, ECCV 2024, arXiv 2403.06764")
class FastV(Scoring):
    """Inside the language model, keep the image tokens that the prompt's last token attends to (FastV, ECCV 2024).

    Layers are counted from 0: layers 0 .. `layer` - 1 see every token, the attention of layer `layer` - 1 decides, and
    from layer `layer` on the rest is gone, caches included. That is the authors' K. `keep` is what is left at the end,
    not a mean over layers; `tokenprune.baselines.layer_budget` converts.

    Definition, paper's code and deviations: `tokenprune.baselines.fastv`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        layer: the first decoder layer with fewer tokens, at least 1.

    Examples:
        >>> attention = torch.tensor([[0.1, 0.7, 0.2]])
        >>> tokens = Tokens(torch.zeros(3, 2), signals={DECODER_ATTENTION: attention})
        >>> FastV(keep=1, layer=3).select(tokens).indices
        tensor([1])
    """

    keep: Keep
    layer: Layer = 2
    needs = (DECODER_ATTENTION,)

    @property
    def place(self) -> InDecoder:
        """The layer; positions stay."""
        return InDecoder(self.layer, positions="original")

    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """Mean attention of the prompt's last token."""
        return head_mean(tokens[DECODER_ATTENTION])
