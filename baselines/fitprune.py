r"""FitPrune: in every layer drop the image tokens that matter least to themselves and to the text.

From one layer's attention with the *maximum* over heads: $\mathrm{self}_i$ = sum over image rows divided by n,
$\mathrm{cross}_i$ = sum over the rows of the text after the image. The `delete` tokens with the smallest
$\mathrm{self}_i \cdot \mathrm{cross}_i$ go, right after that layer's attention. How many per layer comes from
tables that were fitted offline.

Paper: FitPrune, AAAI 2025 (arXiv 2409.10197). Checked against ywh187/FitPrune, commit
36bb1160d77a3e29a58d3fdc0700f86f03b5c5d6 (the ranking core). The tables are not part of this project; `fitprune_fit`
makes such a table from attention maps by the rule in words: in each layer the tokens that are among the least
attended both by the text and by the image leave, as many as keep what is lost of either in that layer at or under a
share alpha, which is bisected until the count of operations has fallen as far as wanted. So the fit takes an
intersection of two sets, inference the product above: related but not the same rule, as in the program.

Defects of the authors' program: 576 and 35 are written into it. None is in the selection.

Deviations: scores in float64; of equal tokens the one with the lowest index is kept; at least one token stays. The
fit was not checked against the program. Its reading of the rule: alpha is a share of the attention that all image
tokens get in that layer of the untouched model, and tokens that left earlier count as lost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenprune.arguments import LARGEST, brief
from tokenprune.baselines.scoring import as_given, check_count, exact_sum, top, working
from tokenprune.core.budget import share_count
from tokenprune.core.fields import Layer, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.signals import Attended, FromDecoder, Signal
from tokenprune.core.strategy import EQUIVARIANT, Stage, Staged
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import precise

__all__ = [
    "FitPrune",
    "FitPruneScores",
    "FitPruneStage",
    "fitprune",
    "fitprune_drops",
    "fitprune_fit",
    "fitprune_operations",
    "fitprune_scores",
]


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
    mine, cross = _scores(attn_visual_cols, n_image)
    return FitPruneScores(as_given(mine, attn_visual_cols), as_given(cross, attn_visual_cols))


def _scores(attn_visual_cols: Float[Tensor, "h r n"], n_image: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    if attn_visual_cols.shape[2] != n_image or attn_visual_cols.shape[1] < n_image:
        raise ValueError(
            f"fitprune: attn_visual_cols must be (heads, {n_image} + text, {n_image}), "
            f"got {tuple(attn_visual_cols.shape)}"
        )
    strongest = attn_visual_cols.amax(0)
    return exact_sum(strongest[:n_image], 0) / n_image, exact_sum(strongest[n_image:], 0)


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
    mine, cross = _scores(attn_visual_cols, n_image)
    return top(mine * cross, n_image - delete)[0]


def fitprune_operations(drops: Sequence[int], *, n: int, width: int, ffn: int) -> int:
    """Multiply-accumulates of image tokens alone in all layers, as the authors count.

    Queries, keys, values and scores of a layer are those of the tokens that enter it, its output projection and gated
    feed-forward part those of the tokens that are left: 3 a d^2 + 2 a^2 d, then b d^2 + 3 b d m.

    Args:
        drops: tokens dropped within each layer.
        n: image tokens that enter the first.
        width: d.
        ffn: m, width of the feed-forward part.

    Examples:
        >>> round(fitprune_operations([0] * 32, n=576, width=4096, ffn=11008) / 1e12, 2)
        3.82
    """
    total, entering = 0, n
    for drop in drops:
        left = entering - drop
        total += 3 * entering * width**2 + 2 * entering**2 * width + left * width**2 + 3 * left * width * ffn
        entering = left
    return total


def fitprune_drops(self_score: Float[Tensor, "l n"], cross_score: Float[Tensor, "l n"], *, alpha: float) -> list[int]:
    """How many tokens leave within each layer when each may lose a share alpha of either attention.

    Args:
        self_score: (layers, n), attention that each token gets from image tokens, in the untouched model.
        cross_score: (layers, n), the same from text tokens.
        alpha: from 0 to 1.

    Examples:
        >>> fitprune_drops(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[0.2, 0.1, 0.7]]), alpha=0.35)
        [2]
    """
    gone = torch.zeros(self_score.shape[1], dtype=torch.bool, device=self_score.device)
    drops = []
    for mine, text in zip(working(self_score), working(cross_score), strict=True):
        leaving = _least(mine, gone, alpha) & _least(text, gone, alpha)
        if bool((gone | leaving).all()):
            leaving[(mine * text).masked_fill(gone, -torch.inf).argmax()] = False
        drops.append(int(leaving.sum()))
        gone = gone | leaving
    return drops


def _least(score: Float[Tensor, " n"], gone: Bool[Tensor, " n"], alpha: float) -> Bool[Tensor, " n"]:
    """The least attended tokens that are left, as many as can go without losing more than alpha of all attention."""
    order = score.masked_fill(gone, torch.inf).sort(stable=True).indices[: int((~gone).sum())]
    lost = score[gone].double().sum() + score[order].double().cumsum(0)
    chosen = order[lost <= alpha * score.double().sum()]
    return torch.zeros_like(gone).index_fill(0, chosen, True)


def fitprune_fit(
    self_score: Float[Tensor, "s l n"],
    cross_score: Float[Tensor, "s l n"],
    *,
    reduction: float,
    width: int,
    ffn: int,
    tolerance: float = 0.01,
) -> tuple[int, ...]:
    """Tokens to drop within each layer so that the operations of image tokens fall by a share.

    For each sample alpha is bisected down to an interval of `tolerance`, and its upper end taken, so that the reduction
    is reached; drops are then averaged over samples, layer by layer, and cut off.

    Args:
        self_score: (samples, layers, n), see `fitprune_drops`.
        cross_score: (samples, layers, n).
        reduction: share of the operations to save, in (0, 1).
        width: d, of the language model.
        ffn: m, width of its feed-forward part.
        tolerance: width of the last interval of alpha.

    Raises:
        ValueError: when the reduction is not in (0, 1).

    Examples:
        >>> ramp = torch.arange(1.0, 9.0).expand(1, 3, 8)
        >>> fitprune_fit(ramp, ramp, reduction=0.5, width=8, ffn=16)
        (5, 0, 0)
    """
    if not 0 < reduction < 1:
        raise ValueError(f"fitprune_fit: reduction must be in (0, 1), got {reduction}")
    layers, n = self_score.shape[1:]
    target = (1 - reduction) * fitprune_operations([0] * layers, n=n, width=width, ffn=ffn)
    tables = []
    for mine, text in zip(self_score, cross_score, strict=True):
        low, high = 0.0, 1.0
        while high - low > tolerance:
            alpha = (low + high) / 2
            drops = fitprune_drops(mine, text, alpha=alpha)
            enough = fitprune_operations(drops, n=n, width=width, ffn=ffn) <= target
            low, high = (low, alpha) if enough else (alpha, high)
        tables.append(fitprune_drops(mine, text, alpha=high))
    return tuple(sum(column) // len(tables) for column in zip(*tables, strict=True))


def _peaks(seen: Attended) -> Float[Tensor, "2 n"]:
    strongest = seen.rows(torch.cat([seen.image, seen.text])).amax(0)  # (n + t, n)
    n = seen.image.shape[0]
    return torch.stack([strongest[:n].sum(0) / n, strongest[n:].sum(0)])


PEAKS = Signal("decoder_peaks", "2 n", FromDecoder(_peaks))
"""Column sums of the maximum over heads of the attention in the layer before: over the rows of this image's tokens,
divided by n, and over those of the text after the image."""


@strategy("fitprune_stage", paper="FitPrune, AAAI 2025, arXiv 2409.10197 (one layer)")
class FitPruneStage(Stage):
    """Drop the least attended image tokens between attention and feed-forward part of a layer (one layer of FitPrune).

    Args:
        drop: tokens (int) or share of the image's original tokens (float in [0, 1)) to drop; one always stays.
        layer: the first decoder layer with fewer tokens, counted from 0: one more than that whose attention decides.

    Examples:
        >>> peaks = torch.tensor([[0.3, 0.2, 0.5], [0.1, 0.3, 0.2]])
        >>> FitPruneStage(1, layer=1).select(Tokens(torch.zeros(3, 2), signals={PEAKS: peaks})).indices
        tensor([1, 2])
    """

    drop: int | float
    layer: Layer = 1
    needs = (PEAKS,)
    promises = EQUIVARIANT
    example = "fitprune_stage(drop=0.1)"

    def __post_init__(self) -> None:
        _check_drop("FitPruneStage", self.drop)

    @property
    def place(self) -> InDecoder:
        """Within the layer before `layer`; positions stay."""
        return InDecoder(self.layer, positions="original", mid_layer=True)

    def foresee(self, left: int, original: int) -> int:
        """Count all but what is dropped."""
        drop = self.drop if isinstance(self.drop, int) else share_count(self.drop, original)
        return max(1, left - drop)

    def choose(self, tokens: Tokens) -> Choice:
        """Keep the largest products."""
        mine, text = precise(tokens[PEAKS])  # (n,) each
        scores = mine * text
        indices, order = top(scores, self.foresee(tokens.n, tokens.original))
        return Choice(indices, order=order, scores=as_given(scores, tokens.visual))


@strategy("fitprune", paper="FitPrune, AAAI 2025, arXiv 2409.10197")
class FitPrune(Staged):
    """Drop a fitted number of image tokens in every layer of the language model (FitPrune, AAAI 2025).

    Layer l drops `drops[l]` tokens right after its attention, so its feed-forward part and all later layers work on
    fewer. Numbers for a model come from `tokenprune.evaluate.attention_fit.fit_fitprune`; the first few of the authors'
    for 60% fewer operations in LLaVA-1.5-7B are 14, 33, 89, 36, 36, 20, 55.

    Definition, paper's code and deviations: `tokenprune.baselines.fitprune`.

    Args:
        drops: for each layer from 0 on tokens (int) or share of the image's original tokens (float in [0, 1)) to drop;
            layers beyond drop nothing. One token always stays.

    Examples:
        >>> FitPrune((4, 0, 2)).stages
        (fitprune_stage(drop=4), fitprune_stage(drop=2, layer=3))
    """

    drops: tuple[int | float, ...]
    example = "fitprune((0.3333333333333333, 0.3333333333333333))"

    def __post_init__(self) -> None:
        drops: object = self.drops
        if not isinstance(drops, tuple | list) or not drops:
            raise TypeError(f"FitPrune: drops must be a tuple of numbers such as (14, 33, 89), got {brief(drops)}")
        object.__setattr__(self, "drops", tuple(drops))
        for drop in self.drops:
            _check_drop("FitPrune", drop, self.drops)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per layer that drops something."""
        stages = [FitPruneStage(drop, layer=layer) for layer, drop in enumerate(self.drops, 1) if drop]
        return tuple(stages) or (FitPruneStage(0, layer=1),)


def _check_drop(owner: str, drop: object, drops: tuple[object, ...] | None = None) -> None:
    wanted = f"{owner}: drop must be a number of tokens (int of at least 0) or a share (float in [0, 1))"
    where = "" if drops is None else f" in drops={brief(drops)}"
    if isinstance(drop, bool) or not isinstance(drop, int | float):
        raise TypeError(f"{wanted}, got {brief(drop)} of type {type(drop).__name__}{where}")
    if not 0 <= drop < (1 if isinstance(drop, float) else LARGEST):  # also catches NaN
        raise ValueError(f"{wanted}, got {brief(drop)}{where}")
