r"""LLaVA-PruMerge and PruMerge+: attention outliers as centres, each with its neighbours' weighted features added.

Attention $a = \operatorname{softmax}(q_{\mathrm{CLS}} k^\top / \sqrt{C})$ over CLS and patches in the *last* CLIP
layer, all heads side by side as one head, the CLS column removed afterwards. Centres: the $m$ patches of largest a,
where m counts the values above $Q_3 + 1.5 (Q_3 - Q_1)$, in falling order of a. A centre becomes $F_c + \sum_{j \in
N(c)} a_j F_j$ with N(c) its 32 neighbours of largest cosine between keys, other centres included; one last token is
$\sum a_j F_j$ over all patches that are no centre. F is the last but one layer's output; all of this comes before
the projector. PruMerge+ appends patches of a regular raster as further centres: indices 0, s, 2s, ... with $s =
\lfloor \lfloor 1/r \rfloor / 3 \rfloor$ for the outlier share r, or, for a fixed share r, step/2, +step, ... with
step $\lfloor 1/r \rfloor$.

Paper: LLaVA-PruMerge, ICCV 2025 (arXiv 2403.15388). Checked against 42Shawn/LLaVA-PruMerge, commit
097c04116a58465e4bcb58cec44a94018a68ff1a.

Defects of the authors' program, reproduced by `official=True`:
- The outlier share is pooled over the batch, so images depend on one another. Default: each image on its own.
- The raster stops below 575 whatever the number of patches. Default: it covers all.
- With a fixed share PruMerge+ repeats centres that are on the raster too. Each repeat removes the lowest patch that is
  no centre from the neighbours and from the last token, and a repeated centre is a neighbour of itself: its own patch
  is added to it, weighted. Default: no repeats; every other patch can be a neighbour, and the last token takes every
  patch that is no centre.
- No outlier: no centre at all, or a ZeroDivisionError in PruMerge+. Default: at least one centre.
- The program stops with fewer than 33 patches (32 neighbours are taken); in PruMerge+ also with a raster index that is
  no patch, a raster step of 0 (a share above 1/3), several images when outliers are counted, and a fixed share whose
  raster has another number of patches than there are centres by attention. `official=True` raises a ValueError there.
  Default: as many neighbours as there are, a raster within the image with a step of at least 1, any batch.

Deviations: attention and cosines in float64, ties to the lowest index. The authors evaluate PruMerge with a
fine-tuned language model; a training-free row is another setting. In the strategies `keep` counts the last token
too, and it takes the place of the patch with the largest weight in it.
"""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, as_given, outlier_count, top, unit64, working
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import PROJECT, VISION_STATES, WHOLE_IMAGE, FromTower, Signal
from tokenprune.core.strategy import PLAIN, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import precise

__all__ = ["Merged", "PruMerge", "PruMergePlus", "merge_neighbours", "prumerge", "prumerge_attention", "raster_centres"]

_LAST_OF_PROGRAM = 575  # the program's raster ends below this index


class Merged(NamedTuple):
    """What PruMerge makes of one image.

    Attributes:
        out_tokens: float (m + 1, c), one token per centre in the order of `centres`, then the rest.
        centres: int64 (m,), patches, by falling attention; PruMerge+ appends those of the raster.
        by_attention: how many of the centres were chosen by attention.
        used_ratio: the share of patches from which that number came.
    """

    out_tokens: Float[Tensor, "m+1 c"]
    centres: Int[Tensor, " m"]
    by_attention: int
    used_ratio: float


def prumerge_attention(q_cls: Float[Tensor, "b f"], k: Float[Tensor, "b p f"]) -> Float[Tensor, "b n"]:
    """Single-head attention of the CLS query to the patches; its weights and that of CLS sum to 1.

    Examples:
        >>> prumerge_attention(torch.zeros(1, 2), torch.ones(1, 4, 2))
        tensor([[0.2500, 0.2500, 0.2500]])
    """
    return as_given(_attention(q_cls, k), k)


def _attention(q_cls: Float[Tensor, "b f"], k: Float[Tensor, "b p f"]) -> Float[Tensor, "b n"]:
    q, k = precise(q_cls), precise(k)
    return ((k @ q[..., None]).squeeze(-1) / k.shape[-1] ** 0.5).softmax(-1)[:, 1:]


def _most_attended(weights: Float[Tensor, " n"], count: int) -> Int[Tensor, " m"]:
    """Patches by falling attention; logarithms also tell small weights apart."""
    logits = weights.log().clamp_min(-1e3)
    return top(logits, count, slack=(TIED * logits.abs().amax())[None])[1]


def prumerge(
    hidden_states: Float[Tensor, "b p c"],
    q_cls: Float[Tensor, "b f"],
    k: Float[Tensor, "b p f"],
    *,
    ratio: float | None = None,
    plus: bool = False,
    official: bool = False,
) -> list[Merged]:
    """Merge the tokens of each image.

    Args:
        hidden_states: (b, n + 1, c), output of the last but one layer, CLS first.
        q_cls: (b, f), the CLS token's query in the last layer, all heads side by side.
        k: (b, n + 1, f), the keys there, CLS first.
        ratio: share of the patches that become centres by attention; None counts outliers (the authors' default).
        plus: PruMerge+, with centres on a raster as well.
        official: reproduce the authors' program (see the file's docstring).

    Returns:
        One `Merged` per image; their sizes may differ.

    Raises:
        ValueError: when ratio is not in (0, 1], or with `official` where the program stops.
        ZeroDivisionError: with `official` and `plus` when no patch is an outlier, as in the program.

    Examples:
        >>> states = torch.arange(5.0)[None, :, None]
        >>> made = prumerge(states, torch.ones(1, 1), torch.tensor([[[0.0], [0.0], [9.0], [0.0], [0.0]]]), ratio=0.25)
        >>> made[0].centres
        tensor([1])
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"prumerge: ratio must be in (0, 1] or None (count outliers), got {ratio}")
    attention = _attention(q_cls, k)
    n = attention.shape[1]
    if official and plus and ratio is None and attention.shape[0] > 1:
        raise ValueError(
            f"prumerge: with official=True and plus=True the program counts outliers for one image at a time, got "
            f"{attention.shape[0]}; call it per image, give ratio, or leave official out"
        )
    pooled = outlier_count(attention) / attention.numel() if official and ratio is None else ratio
    merged = []
    for weights, states, keys in zip(attention, working(hidden_states), working(k), strict=True):
        count = outlier_count(weights) if pooled is None else int(n * pooled)
        count = count if official else max(1, count)
        share = count / n if pooled is None else pooled
        centres = _most_attended(weights, count)
        if plus:
            raster = raster_centres(n, share, fixed=ratio is not None, official=official)
            if official:
                _check_official_raster(raster, n, count, fixed=ratio is not None)
            more = torch.tensor(raster, dtype=torch.int64, device=centres.device)
            repeats = official and ratio is not None
            centres = torch.cat([centres, more if repeats else more[~torch.isin(more, centres)]])
        out = merge_neighbours(states[1:], keys[1:], weights, centres, official=official)
        merged.append(Merged(out.to(hidden_states.dtype), centres, count, share))
    return merged


def raster_centres(n: int, ratio: float, *, fixed: bool, official: bool = False) -> list[int]:
    """The further centres of PruMerge+: a regular raster of patch indices.

    Args:
        n: number of patches.
        ratio: share of centres by attention.
        fixed: whether that share was given (coarser raster, starting inside) or counted (about three times as many).
        official: end below index 575 whatever n is.

    Raises:
        ValueError: with `official`, when the step is 0.

    Examples:
        >>> raster_centres(16, 0.25, fixed=True), raster_centres(16, 0.1, fixed=False)
        ([2, 6, 10, 14], [0, 3, 6, 9, 12, 15])
    """
    step = int(1 / ratio) if fixed else int(int(1 / ratio) / 3)
    if not official:
        step = max(1, step)
    elif step == 0:
        raise ValueError(
            f"prumerge: a share of {ratio} gives a raster step of 0, where the program stops; leave official out"
        )
    return list(range(int(step / 2) if fixed else 0, _LAST_OF_PROGRAM if official else n, step))


def _check_official_raster(raster: list[int], n: int, count: int, *, fixed: bool) -> None:
    """Raise where the program's tensors do not fit: they are made for 576 patches and for the share 1/8."""
    if raster and raster[-1] >= n:
        raise ValueError(
            f"prumerge: the program's raster goes up to patch {raster[-1]}, but there are {n} patches; it stops there, "
            "so leave official out"
        )
    if fixed and len(raster) != count:
        raise ValueError(
            f"prumerge: ratio gives {count} centres by attention and {len(raster)} on the raster; the program stops "
            "unless these are equal, so choose another ratio (576 patches: 0.125) or leave official out"
        )


def merge_neighbours(
    features: Float[Tensor, "n c"],
    keys: Float[Tensor, "n f"],
    weights: Float[Tensor, " n"],
    centres: Int[Tensor, " m"],
    *,
    neighbours: int = 32,
    official: bool = False,
) -> Float[Tensor, "m+1 c"]:
    """Add to each centre its neighbours' weighted features, and gather all other patches in one last token.

    Args:
        features: (n, c), patches.
        keys: (n, f), what neighbours are found by (cosine).
        weights: (n,), attention.
        centres: int64 (m,), may repeat with `official`.
        neighbours: per centre, itself not counted.
        official: choose neighbours from the program's list: the other entries of `centres`, then the patches that are
            none, without as many of the lowest as `centres` has repeats. The last token misses those too.

    Raises:
        ValueError: with `official`, when that list is shorter than `neighbours`.

    Examples:
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> merge_neighbours(x, x, torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0]), neighbours=1)
        tensor([[1.5000],
                [1.5000]])
    """
    n, m = features.shape[0], centres.shape[0]
    rest = _complement(n, centres, official)
    # Where each centre itself is among the candidates for its neighbours: by its place in the list, or as a patch.
    pool, own = torch.arange(n, device=centres.device), centres
    if official:
        pool, own = torch.cat([centres, rest]), torch.arange(m, device=centres.device)
        if m and pool.shape[0] <= neighbours:
            raise ValueError(
                f"prumerge: {n} patches give each centre {pool.shape[0] - 1} others to choose {neighbours} neighbours "
                f"from; the program stops there, so give at least {neighbours + 1} patches or leave official out"
            )
    rows = unit64(keys)
    likeness = (rows[centres] @ rows.T)[:, pool]  # (m, p)
    likeness.scatter_(1, own[:, None], -torch.inf)
    near = pool[top(likeness, min(neighbours, pool.shape[0] - 1), slack=TIED)[1]]  # (m, neighbours), patches
    weighted = weights.to(features.dtype)[:, None] * features
    tokens = features[centres] + weighted[near].sum(1)
    return torch.cat([tokens, weighted[rest].sum(0, keepdim=True)])


def _complement(n: int, centres: Int[Tensor, " m"], official: bool) -> Int[Tensor, " r"]:
    every = torch.arange(n, device=centres.device)
    if official:
        return every.index_fill(0, centres, 0).sort().values[centres.shape[0] :]
    return every[~torch.isin(every, centres)]


LAST_KEYS = Signal("vision_last_keys", "n f", FromTower(-1, lambda seen: _flat(seen.keys)[seen.image]))
"""Output of the key projection of the tower's last layer, heads side by side."""
LAST_CLS = Signal(
    "vision_last_cls",
    "2 f",
    FromTower(-1, lambda seen: _flat(torch.stack([seen.queries, seen.keys], 1)[:, :, seen.last[0]]), cls=True),
)
"""The CLS token's query and its key in that layer, heads side by side."""


def _flat(heads: Float[Tensor, "h k e"]) -> Float[Tensor, "k f"]:
    return heads.transpose(0, 1).flatten(1)


class _Merging(Stage):
    """What the two strategies share: signals, merging, and where the last token goes."""

    keep: Keep | Literal["adaptive"]
    needs = (WHOLE_IMAGE, VISION_STATES, LAST_KEYS, LAST_CLS, PROJECT)
    yields = "merged"
    promises = PLAIN - {"ascending"}

    @abstractmethod
    def _centres(self, weights: Float[Tensor, " n"], count: int | None) -> Int[Tensor, " m"]:
        """Choose the centres; `count` None is the authors' rule."""

    def choose(self, tokens: Tokens) -> Choice:
        """Merge neighbours into centres, and what is left into one token."""
        states, keys, cls = tokens[VISION_STATES], tokens[LAST_KEYS], tokens[LAST_CLS]
        requested = self.requested(tokens)
        if tokens.n == 1 or (requested is not None and requested >= tokens.n):
            return Choice.everything(tokens.visual, merges=True)
        weights = _attention(cls[:1], torch.cat([cls[1:], keys])[None])[0]  # (n,)
        centres = self._centres(weights, None if requested is None else max(1, requested - 1))
        made = merge_neighbours(working(states), keys, weights, centres)
        # Without a patch left over, or with a budget of one token, there is no last token.
        if requested == 1 or centres.shape[0] == tokens.n:
            indices, made = centres, made[:-1]
        else:
            indices = torch.cat([centres, _most_attended(weights.index_fill(0, centres, 0.0), 1)])
        return Choice(indices, features=tokens[PROJECT](made.to(states.dtype)).to(tokens.visual.dtype))


@strategy("prumerge", paper="LLaVA-PruMerge, arXiv 2403.15388")
class PruMerge(_Merging):
    """Merge its nearest neighbours into every attention outlier (LLaVA-PruMerge, arXiv 2403.15388).

    Definition, paper's code and deviations: `tokenprune.baselines.prumerge`.

    Args:
        keep: "adaptive" (the authors' default: one token per outlier, and the last one), or the number of tokens (int)
            or share of the image's original tokens (float), the last token included.

    Examples:
        >>> x = torch.eye(4)
        >>> tower = {VISION_STATES: x, LAST_KEYS: x, LAST_CLS: x[:2] * 9}
        >>> tokens = Tokens(x, signals={**tower, PROJECT: lambda rows: rows})
        >>> PruMerge(keep=2).select(tokens).indices
        tensor([0, 1])
    """

    keep: Keep | Literal["adaptive"] = "adaptive"

    def _centres(self, weights: Float[Tensor, " n"], count: int | None) -> Int[Tensor, " m"]:
        return _most_attended(weights, max(1, outlier_count(weights)) if count is None else count)


@strategy("prumerge_plus", paper="LLaVA-PruMerge, arXiv 2403.15388 (PruMerge+)")
class PruMergePlus(_Merging):
    """Merge neighbours into attention outliers and into centres spread over the image (PruMerge+, arXiv 2403.15388).

    Definition, paper's code and deviations: `tokenprune.baselines.prumerge`. With a budget, half of the centres come
    from attention and half are spread evenly over the other patches, so that the number is met exactly; the authors'
    fixed-share variant takes a raster that overlaps the first half.

    Args:
        keep: "adaptive" (the authors' default), or the number of tokens (int) or share of the image's original tokens
            (float), the last token included.

    Examples:
        >>> x = torch.eye(8)
        >>> tower = {VISION_STATES: x, LAST_KEYS: x, LAST_CLS: x[:2] * 9}
        >>> tokens = Tokens(x, signals={**tower, PROJECT: lambda rows: rows})
        >>> PruMergePlus(keep=4).select(tokens).kept
        4
    """

    keep: Keep | Literal["adaptive"] = "adaptive"

    def _centres(self, weights: Float[Tensor, " n"], count: int | None) -> Int[Tensor, " m"]:
        n = weights.shape[0]
        if count is None:
            outliers = max(1, outlier_count(weights))
            centres = _most_attended(weights, outliers)
            more = torch.tensor(raster_centres(n, outliers / n, fixed=False), device=weights.device)
            return torch.cat([centres, more[~torch.isin(more, centres)]])
        centres = _most_attended(weights, (count + 1) // 2)
        rest, spread = _complement(n, centres, official=False), count - centres.shape[0]
        places = (2 * torch.arange(spread, device=weights.device) + 1) * rest.shape[0] // max(1, 2 * spread)
        return torch.cat([centres, rest[places]])
