r"""MustDrop: merge uniform windows in the vision tower, then drop by two thresholds in the language model.

1. After the tower's first layer: windows of 3 x 3 patches whose mean pairwise cosine is at least 0.8 are averaged.
2. Key set: the $\lceil 0.08\,n \rceil$ patches with the largest head-mean CLS attention of the tower's last layer.
3. In language model layers 2, 6, 10, 14, with a the head-mean attention from text to image tokens: drop i when
   $\sum_t a_{ti} < g \sum_{t,j} a_{tj}$ and $\max_t a_{ti} < m$, unless i is in the key set.

Paper: MustDrop, arXiv 2411.10803. Checked against liuting20/MustDrop, commit
909afa538bff22e10c02db2da101aa1870e21912 (window merging and filter).

Traps of the authors' program: its default thresholds (1.0, 0) drop nothing, and those in its scripts differ per
data set (TextVQA: 192 = (.001, .001), 128 = (.0012, .001), 64 = (.011, .01)), so "192 tokens" is an average over a
data set. The merged windows come first, by falling similarity, so raster order is lost. In a batch it merges as
many windows in every image as in the one with the fewest; here each image stands alone.

Deviations: float32. When the thresholds would drop everything, the token with the largest sum stays; with
`official=True` nothing does.
"""

from math import ceil, isqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import check_count, top, unit, working

__all__ = ["MergedWindows", "mustdrop_filter", "mustdrop_key_set", "mustdrop_merge", "window_similarity"]


class MergedWindows(NamedTuple):
    """What window merging leaves of one image.

    Attributes:
        out_with_cls: float (1 + m + u, c): CLS, merged windows by falling similarity, untouched tokens in raster order.
        out_size: float (1 + m + u,), patches that each row stands for.
        merged_window_order: int64 (m,), windows in row-major order of the window raster.
        unmerged_index: int64 (u,), patches, ascending.
        window_similarity: float (windows,).
    """

    out_with_cls: Float[Tensor, "r c"]
    out_size: Float[Tensor, " r"]
    merged_window_order: Int[Tensor, " m"]
    unmerged_index: Int[Tensor, " u"]
    window_similarity: Float[Tensor, " w"]


def _window_members(side: int, window: int) -> Int[Tensor, "w s"]:
    raster = torch.arange(side * side).reshape(side // window, window, side // window, window)
    return raster.transpose(1, 2).reshape(-1, window * window)


def window_similarity(windows: Float[Tensor, "w s c"]) -> Float[Tensor, " w"]:
    """Mean cosine over the pairs of different patches of each window.

    Examples:
        >>> window_similarity(torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        tensor([1., 0.])
    """
    size = windows.shape[1]
    rows = unit(windows)
    cosines = rows @ rows.transpose(1, 2)
    cosines = cosines - torch.diag_embed(cosines.diagonal(dim1=1, dim2=2))
    return cosines.sum((1, 2)) / max(1, size * (size - 1))


def mustdrop_merge(x_with_cls: Float[Tensor, "p c"], *, threshold: float = 0.8, window: int = 3) -> MergedWindows:
    """Average the windows whose patches are alike.

    Args:
        x_with_cls: (1 + g * g, c), output of the tower's first layer, CLS first.
        threshold: windows with at least this mean cosine are merged.
        window: side of a window in patches; must divide g.

    Raises:
        ValueError: when the patches are no square raster that the windows divide.

    Examples:
        >>> x = torch.tensor([[9.0, 9.0]] + [[1.0, 0.0]] * 2 + [[1.0, 0.0], [0.0, 1.0]] * 7)
        >>> mustdrop_merge(x, window=2).out_size
        tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    n = x_with_cls.shape[0] - 1
    side = isqrt(max(n, 0))
    if window < 1 or side * side != n or side % window:
        raise ValueError(f"mustdrop_merge: {n} patches are no square raster that windows of side {window} divide")
    patches = working(x_with_cls)[1:]
    members = _window_members(side, window).to(patches.device)
    windows = patches[members]
    similarity = window_similarity(windows)
    merge = similarity >= threshold
    order = similarity.sort(descending=True, stable=True).indices[: int(merge.sum())]
    untouched = members[~merge].flatten().sort().values
    out = torch.cat([working(x_with_cls)[:1], windows[order].mean(1), patches[untouched]])
    size = torch.ones(out.shape[0], dtype=out.dtype, device=out.device)
    size[1 : 1 + order.shape[0]] = window * window
    return MergedWindows(out.to(x_with_cls.dtype), size, order, untouched, similarity)


def mustdrop_key_set(cls_attention: Float[Tensor, "h n"], *, share: float = 0.08) -> Int[Tensor, " k"]:
    """The patches that are never dropped: the ceil(share * n) of largest mean CLS attention, ascending.

    Examples:
        >>> mustdrop_key_set(torch.tensor([[0.1, 0.5, 0.4]]), share=0.4)
        tensor([1, 2])
    """
    if not 0 < share <= 1:
        raise ValueError(f"mustdrop_key_set: share must be in (0, 1], got {share}")
    return top(working(cls_attention).mean(0), ceil(share * cls_attention.shape[1]))[0]


def mustdrop_filter(
    attn_text_to_visual: Float[Tensor, "h m n"],
    *,
    global_thr: float,
    individual_thr: float,
    key_set: Int[Tensor, " k"] | None = None,
    official: bool = False,
) -> Int[Tensor, " r"]:
    """The image tokens that survive the two thresholds, ascending.

    Args:
        attn_text_to_visual: (heads, m, n), attention of the text rows to the image columns of one layer.
        global_thr: share of the total attention below which a token may go.
        individual_thr: attention below which every text token must stay for a token to go.
        key_set: int64 (k,), tokens that stay whatever their attention (`mustdrop_key_set`).
        official: let the thresholds drop everything, as the authors' program does.

    Raises:
        ValueError: when there is no text row.

    Examples:
        >>> attention = torch.tensor([[[0.5, 0.01, 0.3], [0.6, 0.02, 0.0]]])
        >>> mustdrop_filter(attention, global_thr=0.1, individual_thr=0.1)
        tensor([0, 2])
    """
    check_count("mustdrop_filter", "number of text rows", attn_text_to_visual.shape[1], attn_text_to_visual.shape[1])
    attention = working(attn_text_to_visual).mean(0)
    total = attention.sum(0)
    kept = (total >= global_thr * attention.sum()) | (attention.amax(0) >= individual_thr)
    if key_set is not None:
        kept = kept.index_fill(0, key_set, True)
    if official:
        return kept.nonzero().flatten()
    kept = torch.where(kept.any(), kept, torch.nn.functional.one_hot(total.argmax(), total.shape[0]).bool())
    return kept.nonzero().flatten()
