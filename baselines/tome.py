r"""ToMe: merge the r most similar pairs of tokens in every layer of the vision tower.

Tokens at even positions (A) each link to the token at an odd position (B) with the largest cosine of keys, heads
averaged. The r strongest links merge, $r \le \lfloor (n - p) / 2 \rfloor$ with p = 1 for a CLS token, which never
merges; sizes weight the mean. Output: unmerged A, then B. With a CLS token the unmerged part is in order; without,
it follows the falling score, so that raster order is lost in both cases.

Paper: ToMe, ICLR 2023 (arXiv 2210.09461). Checked against facebookresearch/ToMe, commit
af95e4b1befa172dadccd8c81e223b10090f9579. Merging comes between attention and MLP, and log(size) is added to the
next layers' attention logits. The authors' patches cover no CLIP; any row for LLaVA is someone's port.

Deviations: matching in float64, ties to the lowest position. Behind the tower the merged tokens go back into the
raster order of the patches whose places they take (those of B), since a projector works on each token alone. `keep`
spreads the merges evenly over the layers.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import brief
from tokenprune.baselines.scoring import TIED, unit64, working
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import strategy
from tokenprune.core.merging import Merge, Merging, TowerState
from tokenprune.core.places import InTower
from tokenprune.kernels.rank import ranking
from tokenprune.kernels.ties import lowest_best

__all__ = [
    "Matching",
    "MergedTokens",
    "ToMe",
    "bipartite_soft_matching",
    "merge_tokens",
    "tome",
    "tome_schedule",
    "tome_schedule_for",
]


class Matching(NamedTuple):
    """Which tokens merge, in positions of the sequence given.

    Attributes:
        unmerged: int64 (a - r,), positions in A that stay, in output order.
        source: int64 (r,), positions in A that merge, strongest link first.
        target: int64 (r,), the position in B that each of them joins.
    """

    unmerged: Int[Tensor, " u"]
    source: Int[Tensor, " r"]
    target: Int[Tensor, " r"]


class MergedTokens(NamedTuple):
    """The state after one or more merging steps.

    Attributes:
        x: float (k, c), size-weighted means.
        size: float (k,), original tokens in each row.
        group: int64 (n,), the row that each original token is in.
    """

    x: Float[Tensor, "k c"]
    size: Float[Tensor, " k"]
    group: Int[Tensor, " n"]


def bipartite_soft_matching(metric: Float[Tensor, "n e"], r: int, *, class_token: bool = False) -> Matching:
    """Pair even with odd positions by cosine and choose the r strongest links.

    Args:
        metric: (n, e), keys averaged over heads.
        r: number of merges; cut at (n - protected) // 2.
        class_token: position 0 is a CLS token and does not merge.

    Raises:
        ValueError: when r is negative.

    Examples:
        >>> metric = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.5]])
        >>> bipartite_soft_matching(metric, 1)
        Matching(unmerged=tensor([0]), source=tensor([2]), target=tensor([1]))
    """
    if r < 0:
        raise ValueError(f"bipartite_soft_matching: r must be 0 or more, got {r}")
    n = metric.shape[0]
    r = max(0, min(r, (n - class_token) // 2))
    rows = unit64(metric)
    if r == 0:
        every = torch.arange(0, n, 2, device=metric.device)
        return Matching(every, every[:0], every[:0])
    scores = rows[::2] @ rows[1::2].T
    if class_token:
        scores[0] = -torch.inf
    strength, partner = scores.amax(1), lowest_best(scores, TIED)
    order = ranking(strength, TIED)
    source, unmerged = order[:r], order[r:]
    if class_token:
        unmerged = unmerged.sort().values
    return Matching(2 * unmerged, 2 * source, 2 * partner[source] + 1)


def merge_tokens(state: MergedTokens, matching: Matching) -> MergedTokens:
    """Apply a matching: size-weighted means, sizes added, groups followed; no merge leaves the state as it is."""
    if matching.source.shape[0] == 0:
        return state
    row_of, places = _regrouped(state.x.shape[0], matching)
    size = state.size.new_zeros(places.shape[0]).index_add(0, row_of, state.size)
    share = state.size / size[row_of]  # of each row in its mean; sums of rows could overflow
    mean = state.x.new_zeros((places.shape[0], state.x.shape[1])).index_add(0, row_of, state.x * share[:, None])
    return MergedTokens(mean, size, row_of[state.group])


def _regrouped(n: int, matching: Matching) -> Merge:
    """Of n rows the new row of each, and for each new row the old one whose place it takes."""
    device = matching.source.device
    places = torch.cat([matching.unmerged, torch.arange(1, n, 2, device=device)])
    row_of = torch.empty(n, dtype=torch.int64, device=device)
    row_of[places] = torch.arange(places.shape[0], device=device)
    row_of[matching.source] = row_of[matching.target]
    return Merge(row_of, places)


def tome(
    x: Float[Tensor, "n c"],
    metrics: Sequence[Float[Tensor, "_ e"]],
    r: Sequence[int],
    *,
    class_token: bool = False,
) -> MergedTokens:
    """Merge in steps; in a tower, step i belongs to layer i and its metric comes from the tokens left by then.

    Args:
        x: (n, c), features.
        metrics: one (n_i, e) per step, n_i the number of tokens at that step.
        r: merges per step.
        class_token: row 0 is a CLS token and does not merge.

    Returns:
        Features in float32 (float64 for float64 input), sizes and groups.

    Raises:
        ValueError: when metrics and r differ in number, or a metric in length from the tokens at its step.

    Examples:
        >>> x = torch.tensor([[0.0], [2.0], [4.0], [9.0]])
        >>> metric = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.5]])
        >>> tome(x, [metric], [1]).x.flatten()
        tensor([0., 3., 9.])
    """
    if len(metrics) != len(r):
        raise ValueError(f"tome: metrics and r must have one entry per step, got {len(metrics)} and {len(r)}")
    rows = working(x)
    state = MergedTokens(rows, rows.new_ones(rows.shape[0]), torch.arange(rows.shape[0], device=rows.device))
    for step, (metric, merges) in enumerate(zip(metrics, r, strict=True)):
        if metric.shape[0] != state.x.shape[0]:
            raise ValueError(f"tome: metric {step} has {metric.shape[0]} rows, but {state.x.shape[0]} tokens are left")
        state = merge_tokens(state, bipartite_soft_matching(metric, merges, class_token=class_token))
    return state


def tome_schedule(layers: int, r: int | Sequence[int] | tuple[int, float]) -> list[int]:
    """Merges per layer from the authors' shorthand.

    Args:
        layers: number of layers, at least 1.
        r: a constant; or a list, padded with 0; or (r, inflection) as a tuple whose second entry is a float: from
            r (1 - inflection) in the first layer straight to r (1 + inflection) in the last, each rounded down.

    Examples:
        >>> tome_schedule(3, 8), tome_schedule(3, [8, 4])
        ([8, 8, 8], [8, 4, 0])
        >>> tome_schedule(24, (16, -1.0))[:3], tome_schedule(24, (16, -1.0))[-2:]
        ([32, 30, 29], [1, 0])
    """
    if layers < 1:
        raise ValueError(f"tome_schedule: layers must be 1 or more, got {layers}")
    if isinstance(r, int):
        return [r] * layers
    if isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        first = int(r[0] * (1 - r[1]))
        slope = 2 * (r[0] - first) / max(1, layers - 1)
        return [int(first + slope * layer) for layer in range(layers)]
    fixed = [int(value) for value in r][:layers]
    return fixed + [0] * (layers - len(fixed))


def tome_schedule_for(keep: int, *, patches: int, layers: int, prefix: int = 1) -> list[int]:
    """Merges per layer that leave `keep` patches: the same number in every layer, one less in the last ones.

    A layer can merge at most half of what it gets; where that binds (late layers, small budgets) the others do more.

    Args:
        keep: patches that are left, 1 to `patches`.
        patches: patches of the image.
        layers: layers in which merging is possible.
        prefix: 1 with a CLS token, else 0.

    Raises:
        ValueError: when so few cannot be reached.

    Examples:
        >>> tome_schedule_for(192, patches=576, layers=24), tome_schedule_for(9, patches=16, layers=2)
        ([16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16], [4, 3])
    """
    surplus = patches - keep
    even = next((r for r in range(surplus + 1) if sum(_capped(r, patches, layers, prefix)) >= surplus), None)
    if even is None:
        least = patches - sum(_capped(patches, patches, layers, prefix))
        raise ValueError(
            f"ToMe: keep={keep} of {patches} patches is out of reach in {layers} layers of the vision tower, each of "
            f"which can merge half of its tokens: at least {least} stay; keep more"
        )
    merges = _capped(even, patches, layers, prefix)
    excess = sum(merges) - surplus
    for layer in reversed([layer for layer, count in enumerate(merges) if count == even]):
        if excess:
            merges[layer] -= 1
            excess -= 1
    return merges


def _capped(r: int, patches: int, layers: int, prefix: int) -> list[int]:
    merges, left = [], patches + prefix
    for _ in range(layers):
        merges.append(min(r, (left - prefix) // 2))
        left -= merges[-1]
    return merges


@strategy("tome", paper="ToMe, ICLR 2023, arXiv 2210.09461")
class ToMe(Merging):
    """Merge similar patches in every layer of the vision tower (ToMe, ICLR 2023).

    Definition, paper's code and deviations: `tokenprune.baselines.tome`. Give `keep`, or the authors' `r`. The tower's
    layers up to the one whose output the projector gets take part.

    Args:
        keep: tokens (int) or share of the image's original tokens (float) that leave the tower; "schedule" with `r`.
        r: merges per layer: a constant, one number per layer (further layers merge nothing), or (r, inflection) with a
            float as the second: from r (1 - inflection) in the first layer straight to r (1 + inflection) in the last.
        proportional: add log(size) to the attention logits, so that a merged token weighs as much as its patches.

    Examples:
        >>> ToMe(keep=64), ToMe(r=8), ToMe(r=[8, 4])
        (tome(keep=64), tome(r=8), tome(r=(8, 4)))
    """

    keep: Keep | Literal["schedule"] = "schedule"
    r: int | Sequence[int] | tuple[int, float] | None = None
    proportional: bool = True
    example = "tome(keep=0.5)"

    def __post_init__(self) -> None:
        if (self.keep == "schedule") == (self.r is None):
            raise ValueError(f"ToMe: give either keep or r, got keep={brief(self.keep)} and r={brief(self.r)}")
        if self.r is not None:
            object.__setattr__(self, "r", _checked_r(self.r))

    @property
    def place(self) -> InTower:
        """Between attention and feed-forward part of every layer."""
        return InTower("attention", weighted=self.proportional)

    def schedule(self, layers: int, *, patches: int, prefix: int = 1) -> list[int]:
        """Count the merges per layer.

        Raises:
            ValueError: when `keep` cannot be reached.
        """
        if self.r is not None:
            return tome_schedule(layers, cast("int | tuple[int, float]", self.r))
        keep = min(patches, keep_count(cast("int | float", self.keep), patches))
        return tome_schedule_for(keep, patches=patches, layers=layers, prefix=prefix)

    def merge(
        self,
        layer: int,
        layers: int,
        state: TowerState,
        keys: Float[Tensor, "p e"] | None,
        *,
        prefix: int,
        patches: int,
    ) -> Merge | None:
        """Merge the layer's strongest links; see `Merging.merge`."""
        if keys is None or prefix > 1:
            raise ValueError(f"ToMe: needs the layer's keys and at most a CLS token in front, got {prefix} such tokens")
        matching = bipartite_soft_matching(
            keys, self.schedule(layers, patches=patches, prefix=prefix)[layer], class_token=prefix == 1
        )
        return _regrouped(state.x.shape[0], matching) if matching.source.shape[0] else None


def _checked_r(r: object) -> int | tuple[int, ...] | tuple[int, float]:
    values = (r,) if isinstance(r, int) else tuple(r) if isinstance(r, tuple | list) else (None,)
    inflected = len(values) == 2 and isinstance(values[1], float) and -1 <= values[1] <= 1
    counts = values[:1] if inflected else values
    if not counts or any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in counts):
        raise ValueError(
            "ToMe: r must be an int of at least 0, a list of such numbers, or (r, inflection) with a float from -1 to "
            f"1, got {r!r}"
        )
    return cast("int | tuple[int, ...]", r if isinstance(r, int) else values)
