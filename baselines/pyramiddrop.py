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

Deviations: scores in float32, ties to the lowest index. In training the program averages over all tokens that
precede an answer; pruning uses the last instruction token.
"""

from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import check_count, top, working

__all__ = ["LAYERS", "RATIOS", "pyramiddrop", "pyramiddrop_counts", "pyramiddrop_score"]

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
    heads, groups = query_last.shape[-2], keys.shape[-3]
    if heads % groups:
        raise ValueError(f"pyramiddrop: {groups} key heads do not divide {heads} query heads")
    check_count("pyramiddrop", "image_start", image_start, keys.shape[-2] - n_image, lowest=0)
    keys = working(keys).repeat_interleave(heads // groups, dim=-3)
    logits = (keys @ working(query_last)[..., None]).squeeze(-1) / query_last.shape[-1] ** 0.5
    return logits.softmax(-1)[..., image_start : image_start + n_image].mean(-2)


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
    return top(pyramiddrop_score(query_last, keys, image_start=image_start, n_image=n_image), keep)[0]
