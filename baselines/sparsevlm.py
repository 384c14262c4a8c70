r"""SparseVLM (v1.5): text tokens that look at the image rate it; what they do not look at is dropped or recycled.

*Raters*, once, on the language model's input embeddings: $P = \operatorname{softmax}$ over text tokens of the raw
dot products visual x text, $r_j$ = mean over visual tokens; raters are the text tokens with $r_j$ above the mean of
r. Text is everything after the image. *Stages* after layers 2, 6, 15 (counted from 0): $s_i$ = mean over raters of
the head-mean attention; the $\min(schedule, n - 1)$ largest stay, in order. *Recycling*: of D dropped tokens the
$\lfloor 0.3 D \rfloor + 1$ best scored are clustered into $\lfloor m / 10 \rfloor + 1$ groups by density peaks, on
the layer's output: distance = Euclidean / sqrt(d); density = exp(-mean of the c smallest squared distances, itself
included), delta = distance to the nearest denser token (else the largest distance of all), centres = the c largest
density x delta, every other token joins its nearest centre; a group becomes sum / (count + 1e-6). These come after
the kept image tokens. Positions are renumbered after each stage.

Paper: SparseVLM, ICML 2025 (arXiv 2410.04417). Checked against Gumpest/SparseVLMs, commit
26a5f48813c46cd1c7364160354e7fdd3febaa67, version switch 1_0. Not covered: SparseVLM+ (2_0). The paper's rank-based
counts are not what the code runs since 2025-03.

Defects of the authors' program: it adds uniform noise up to 1e-6 to the densities to break ties, and with two
clusters nearest pairs always tie, so that merged tokens differ from run to run. Default: of equally dense tokens
the one with the better score is the denser. Pass `noise` to reproduce a run.

Deviations: float32, ties to the lowest index. Budgets other than the four published ones need schedules of their
own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import check_count, top, working

__all__ = [
    "LAYERS",
    "SCHEDULES",
    "Stage",
    "recycle",
    "sparsevlm_keep",
    "sparsevlm_raters",
    "sparsevlm_score",
    "sparsevlm_stage",
]

LAYERS = (2, 6, 15)
SCHEDULES = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
"""Image tokens kept after each stage, merged ones not counted, by the published (layer-averaged) budget."""


class Stage(NamedTuple):
    """What one stage does.

    Attributes:
        keep_index: int64 (k,), ascending.
        recycle_index: int64 (m,), the best scored of the dropped ones, best first.
        merged_tokens: float (c, d), None when no features were given.
        score: float (n,).
    """

    keep_index: Int[Tensor, " k"]
    recycle_index: Int[Tensor, " m"]
    merged_tokens: Float[Tensor, "c d"] | None
    score: Float[Tensor, " n"]


def sparsevlm_raters(
    visual: Float[Tensor, "n d"], text: Float[Tensor, "m d"]
) -> tuple[Int[Tensor, " r"], Float[Tensor, " m"]]:
    """The text tokens that rate the image, ascending, and every text token's score.

    Args:
        visual: (n, d), visual tokens as they enter the language model.
        text: (m, d), input embeddings of the text after the image.

    Returns:
        Raters counted from the first text token (all of them when their scores are equal), and the scores (m,).

    Raises:
        ValueError: when there is no text.

    Examples:
        >>> sparsevlm_raters(torch.eye(2), torch.tensor([[0.0, 0.0], [3.0, 3.0]]))[0]
        tensor([1])
    """
    if text.shape[0] == 0:
        raise ValueError("sparsevlm_raters: text has no rows; the method needs text after the image")
    score = (working(visual) @ working(text).T).softmax(-1).mean(0)
    above = score > score.mean()
    return torch.where(above.any(), above, torch.ones_like(above)).nonzero().flatten(), score


def sparsevlm_score(attn_rater_rows_headmean: Float[Tensor, "r n"]) -> Float[Tensor, " n"]:
    """Mean over raters of the head-mean attention to each image token."""
    return working(attn_rater_rows_headmean).mean(0)


def sparsevlm_keep(score: Float[Tensor, " n"], keep: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " m"]]:
    """Split by score: (kept, ascending; the part of the dropped ones that is recycled, best first).

    Args:
        score: (n,), n >= 2.
        keep: the schedule's number; at least one token is always dropped.

    Examples:
        >>> sparsevlm_keep(torch.tensor([0.1, 0.4, 0.2, 0.3]), 2)
        (tensor([1, 3]), tensor([2]))
    """
    n = score.shape[0]
    check_count("sparsevlm", "keep", keep, max(n, keep) if isinstance(keep, int) else n)
    check_count("sparsevlm", "number of image tokens", n, n, lowest=2)
    keep = min(keep, n - 1)
    order = top(score, n)[1]
    recycled = int(0.3 * (n - keep)) + 1
    return order[:keep].sort().values, order[keep : keep + recycled]


def recycle(
    features: Float[Tensor, "m d"], *, clusters: int | None = None, noise: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "c d"]:
    """Cluster tokens by density peaks and add up each cluster.

    Args:
        features: (m, d), best scored first.
        clusters: number of clusters c, 1 to m; None takes int(m / 10) + 1.
        noise: (m,), added to the densities in place of the tie rule (the program draws it from [0, 1e-6)).

    Returns:
        float (c, d), in order of falling density x delta.

    Examples:
        >>> recycle(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), clusters=2).round(decimals=2).flatten()
        tensor([0.0500, 5.0500])
    """
    m, width = features.shape
    c = m // 10 + 1 if clusters is None else clusters
    check_count("recycle", "clusters", c, m)
    x = working(features)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / width**0.5
    density = (-distance.sort(dim=-1).values[:, :c].square().mean(-1)).exp()
    if noise is not None:
        density = density + noise.to(density.dtype)
    place = torch.arange(m, device=x.device)
    earlier = (density[None] == density[:, None]) & (place[None] < place[:, None]) & (noise is None)
    denser = (density[None] > density[:, None]) | earlier
    farthest = distance.amax()
    delta = torch.where(denser, distance, farthest).amin(-1)
    centres = top(density * delta, c)[1]
    group = distance[centres].argmin(0)
    group = group.index_copy(0, centres, torch.arange(c, device=x.device))
    count = x.new_zeros(c).index_add(0, group, x.new_ones(m))
    total = x.new_zeros((c, width)).index_add(0, group, x)
    return (total / (count + 1e-6)[:, None]).to(features.dtype)


def sparsevlm_stage(
    attn_rater_rows_headmean: Float[Tensor, "r n"],
    keep: int,
    *,
    features: Float[Tensor, "n d"] | None = None,
    noise: Float[Tensor, " m"] | None = None,
) -> Stage:
    """One stage: rank, keep, recycle.

    Args:
        attn_rater_rows_headmean: (raters, n), attention of the stage's layer, head mean, rater rows, image columns.
        keep: the schedule's number of tokens; at least one token is always dropped.
        features: (n, d), the layer's output at the image columns; None skips the merging.
        noise: see `recycle`.

    Examples:
        >>> stage = sparsevlm_stage(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 2, features=torch.arange(4.0)[:, None])
        >>> stage.keep_index, stage.merged_tokens.round()
        (tensor([1, 3]), tensor([[2.]]))
    """
    score = sparsevlm_score(attn_rater_rows_headmean)
    kept, recycled = sparsevlm_keep(score, keep)
    merged = None if features is None else recycle(features[recycled], noise=noise)
    return Stage(kept, recycled, merged, score)
