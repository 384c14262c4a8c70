r"""PyramidDrop: drop image tokens in stages, by the attention that the *next* layer would give them.

After a stage's layer, queries and keys of the next layer are taken (its input norm, projections and rotary
embedding at the current positions): $s_i = \operatorname{mean}_h \operatorname{softmax}(q^h_{\mathrm{last}}
k^{h\top} / \sqrt{d_h})_i$ over the causal prefix, image columns only. The $\lfloor n \cdot r_s \rfloor$ largest
stay, in order; n is the *original* number of image tokens. Defaults: after layers 8, 16, 24 the shares 1/2, 1/4,
1/8. Positions are renumbered at each stage.

Paper: PyramidDrop, CVPR 2025 (arXiv 2410.17247). Checked against Cooperx521/PyramidDrop, commit
6444f304aee4b7edcb022839fb9e8cd07859704a.

Defects of the authors' program: it stops under eager attention and with grouped-query attention (fewer key heads
than query heads); here key heads are repeated. Where it runs the selection is the same, so there is no `official`
switch.

Deviations: scores in float64, ties to the lowest index; the strategy rounds shares half up (the program cuts them
off). In training the program averages over all tokens that precede an answer; pruning uses the last instruction token.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import check_real
from tokenprune.baselines.scoring import TIED, as_given, check_count, head_mean, top
from tokenprune.core.budget import Keep, check_keep, keep_count
from tokenprune.core.fields import Layer, Layers, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.signals import FromDecoder, Signal
from tokenprune.core.strategy import Scoring, Stage, Staged
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import precise

__all__ = [
    "LAYERS",
    "RATIOS",
    "PyramidDrop",
    "PyramidDropStage",
    "pyramiddrop",
    "pyramiddrop_counts",
    "pyramiddrop_score",
]

LAYERS = (8, 16, 24)
RATIOS = (0.5, 0.25, 0.125)


def pyramiddrop_counts(n_image: int, ratios: tuple[float, ...] = RATIOS) -> list[int]:
    """Image tokens left after each stage: `int(n_image * ratio)`.

    Examples:
        >>> pyramiddrop_counts(576)
        [288, 144, 72]
    """
    return [int(n_image * ratio) for ratio in ratios]


def pyramiddrop_score(
    query_last: Float[Tensor, "*b h e"], keys: Float[Tensor, "*b g l e"], *, image_start: int, n_image: int
) -> Float[Tensor, "*b n"]:
    """Head mean of the last query's softmaxed attention, image columns.

    Args:
        query_last: (..., heads, head width), the next layer's query of the last token, after rotary embedding.
        keys: (..., key heads, l, head width), the next layer's keys of all tokens up to that one, after rotary
            embedding; the key heads divide the heads.
        image_start: position of the first image token.
        n_image: image tokens present at this stage.

    Raises:
        ValueError: when the key heads do not divide the heads, or the image does not fit.
    """
    return as_given(_score(query_last, keys, image_start, n_image), query_last)


def _score(
    query_last: Float[Tensor, "*b h e"], keys: Float[Tensor, "*b g l e"], image_start: int, n_image: int
) -> Float[Tensor, "*b n"]:
    heads, groups = query_last.shape[-2], keys.shape[-3]
    if heads % groups:
        raise ValueError(f"pyramiddrop: {groups} key heads do not divide {heads} query heads")
    check_count("pyramiddrop", "image_start", image_start, keys.shape[-2] - n_image, lowest=0)
    keys = precise(keys).repeat_interleave(heads // groups, dim=-3)
    logits = (keys @ precise(query_last)[..., None]).squeeze(-1) / query_last.shape[-1] ** 0.5
    return head_mean(logits.softmax(-1)[..., image_start : image_start + n_image])


def pyramiddrop(
    query_last: Float[Tensor, "*b h e"],
    keys: Float[Tensor, "*b g l e"],
    *,
    image_start: int,
    n_image: int,
    keep: int,
) -> Int[Tensor, "*b k"]:
    """The image tokens that survive one stage, counted within those present, ascending.

    Args:
        query_last: see `pyramiddrop_score`.
        keys: see `pyramiddrop_score`.
        image_start: position of the first image token.
        n_image: image tokens present at this stage.
        keep: how many stay, 1 to n_image (`pyramiddrop_counts`).

    Examples:
        >>> import torch
        >>> keys = torch.tensor([[[9.0], [1.0], [3.0], [2.0], [0.0]]])
        >>> pyramiddrop(torch.ones(1, 1), keys, image_start=1, n_image=3, keep=2)
        tensor([1, 2])
    """
    check_count("pyramiddrop", "keep", keep, n_image)
    score = _score(query_last, keys, image_start, n_image)
    return top(score, keep, slack=TIED * score.amax(-1, keepdim=True))[0]


NEXT_ATTENTION = Signal("decoder_next_attention", "_ n", FromDecoder(lambda seen: seen.rows(seen.last)[:, 0], layer=0))
"""Attention of the prompt's last token in the stage's own layer, as it would be if nothing were dropped there."""


@strategy("pyramiddrop_stage", paper="PyramidDrop, CVPR 2025, arXiv 2410.17247 (one stage)")
class PyramidDropStage(Scoring):
    """Keep the image tokens that the last token attends to most in the layer to come (one stage of PyramidDrop).

    Stages with budgets of their own make other pyramids:
    `PyramidDropStage(0.6, layer=4) >> PyramidDropStage(0.2, layer=12)`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        layer: the first decoder layer with fewer tokens, counted from 0; its own attention decides.
        power: of n original tokens and a budget of k, n (k / n)^power are kept: how far down the pyramid the stage is.

    Examples:
        >>> stage = PyramidDropStage(keep=0.125, layer=8, power=1 / 3)
        >>> import torch
        >>> stage.count(Tokens(torch.zeros(576, 2)))
        288
    """

    keep: Keep
    layer: Layer = 8
    power: float = 1.0
    needs = (NEXT_ATTENTION,)

    def __post_init__(self) -> None:
        check_real("PyramidDropStage", "power", self.power, 0, 1)
        # A power is a number in (0, 1], like a share.
        object.__setattr__(self, "power", check_keep(float(self.power), owner="PyramidDropStage", parameter="power"))

    @property
    def place(self) -> InDecoder:
        """The layer; positions are renumbered."""
        return InDecoder(self.layer, positions="compact")

    def requested(self, tokens: Tokens) -> int | None:
        """Count the budget, or what is left of the image at this height of the pyramid."""
        n, kept = tokens.original, keep_count(self.keep, tokens.original)
        return kept if self.power == 1.0 else math.floor(n * (kept / n) ** self.power + 0.5 + 1e-9)

    def score(self, tokens: Tokens) -> Float[Tensor, " n"]:
        """Mean attention of the prompt's last token."""
        return head_mean(tokens[NEXT_ATTENTION])


@strategy("pyramiddrop", paper="PyramidDrop, CVPR 2025, arXiv 2410.17247")
class PyramidDrop(Staged):
    """Drop image tokens in several stages inside the language model (PyramidDrop, CVPR 2025).

    Each of the S stages leaves the same share of the one before it, so that `keep` are left behind the last: the
    default leaves 1/2, 1/4 and 1/8. Positions are renumbered at each stage. Which layers fit a model with other than 32
    is up to the caller. `keep` is no mean over layers; `tokenprune.baselines.layer_budget` converts.

    Definition, paper's code and deviations: `tokenprune.baselines.pyramiddrop`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float) that survive the last stage.
        layers: the first decoder layer with fewer tokens of each stage, ascending, counted from 0.

    Examples:
        >>> import torch
        >>> [stage.count(Tokens(torch.zeros(576, 2))) for stage in PyramidDrop().stages]
        [288, 144, 72]
    """

    keep: Keep = RATIOS[-1]
    layers: Layers = LAYERS
    example = "pyramiddrop(keep=0.5)"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per layer."""
        steps = len(self.layers)
        return tuple(
            PyramidDropStage(self.keep, layer=layer, power=step / steps) for step, layer in enumerate(self.layers, 1)
        )
