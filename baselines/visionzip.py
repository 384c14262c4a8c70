r"""VisionZip: the CLS token, the patches it attends to most, and a few merged tokens that stand for the rest.

*Dominant*: the CLS token and the patches of largest head-summed CLS attention, in raster order. *Contextual*: of
the M patches left, targets sit at positions 0, s, 2s, ... with $s = \max(1, \lfloor M / c \rfloor)$, the first c of
them; every other one joins the target with the most similar key (cosine, heads averaged), and a contextual token is
the target's feature *plus* the mean of those that joined it. All before the projector. Budgets: 27/32 dominant (CLS
included) and 5/32 contextual, hence 162 + 30, 108 + 20, 54 + 10.

Paper: VisionZip, CVPR 2025 (arXiv 2412.04467). Checked against dvlab-research/VisionZip, commit
3151f6df4fca36a4cd1c985e5956e725b1f9ad02.

Defects of the authors' program: it fails when fewer patches are left than contextual tokens are wanted (here: as
many as there are). The sum of target and mean has about twice the norm of a token; that is kept, it is the method
as published.

Deviations: scores and cosines in float64, ties to the lowest index. LLaVA-NeXT, where the program stitches tiles in
an order of its own, is not covered. In the strategy `keep` counts every token that enters the language model, CLS
included. A selection needs a place in the image for each token, so the CLS token takes the place of the patch of
largest attention among those that do not survive themselves; with the authors' renumbered positions this has no
effect on the model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, check_count, exact_sum, top, unit64, working
from tokenprune.core.budget import Keep
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLS_ATTENTION, PROJECT, VISION_KEYS, VISION_STATES, FromProjector, Signal
from tokenprune.core.strategy import PLAIN, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import lowest_best

__all__ = ["VisionZip", "VisionZipTokens", "visionzip", "visionzip_budget"]


class VisionZipTokens(NamedTuple):
    """What VisionZip makes of a batch of tiles.

    Attributes:
        out_tokens: float (b, dominant + contextual, c), CLS, dominant patches in raster order, contextual tokens.
        dominant_index_with_cls: int64 (b, dominant), CLS = 0 first, then patches (counted from 1) by falling attention.
        contextual_index: int64 (b, contextual), the target patch (counted from 0) of each contextual token.
    """

    out_tokens: Float[Tensor, "b k c"]
    dominant_index_with_cls: Int[Tensor, "b dominant"]
    contextual_index: Int[Tensor, "b contextual"]


def visionzip_budget(keep: int) -> tuple[int, int]:
    """The authors' split of a budget: (dominant with CLS, contextual) in the proportion 27 : 5.

    Examples:
        >>> [visionzip_budget(keep) for keep in (192, 128, 64, 1)]
        [(162, 30), (108, 20), (54, 10), (1, 0)]
    """
    contextual = keep * 5 // 32
    return keep - contextual, contextual


def visionzip(
    cls_attention: Float[Tensor, "b h n"],
    hidden_states: Float[Tensor, "b n+1 c"],
    key_metric: Float[Tensor, "b n+1 e"],
    dominant: int,
    contextual: int,
) -> VisionZipTokens:
    """Dominant and contextual tokens of each tile, before the projector.

    Args:
        cls_attention: (b, heads, n), CLS row of the layer whose output is used, without its own column.
        hidden_states: (b, n + 1, c), that layer's output, CLS first.
        key_metric: (b, n + 1, e), that layer's keys averaged over heads, CLS first.
        dominant: number of dominant tokens, the CLS token included, 1 to n + 1.
        contextual: number of merged tokens, 0 to n; cut at the number of patches left.

    Raises:
        ValueError: when dominant is not in 1..n + 1 or contextual not in 0..n.

    Examples:
        >>> attention = torch.tensor([[[0.1, 0.6, 0.2, 0.1]]])
        >>> states = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])
        >>> visionzip(attention, states, states, dominant=2, contextual=1).out_tokens.flatten()
        tensor([9.0000, 2.0000, 4.5000])
    """
    batch, _, n = cls_attention.shape
    check_count("visionzip", "dominant", dominant, n + 1)
    left_over = n + 1 - dominant
    check_count("visionzip", "contextual", contextual, n, lowest=0)
    contextual = min(contextual, left_over)
    scores = exact_sum(cls_attention, -2)
    raster, ranked = top(scores, dominant - 1)
    cls = torch.zeros((batch, 1), dtype=torch.int64, device=scores.device)
    rest = torch.ones_like(scores, dtype=torch.bool).scatter(1, raster, False)
    # A stable sort instead of boolean indexing: the number left is known, so nothing waits for the device.
    rest_index = rest.int().sort(dim=1, descending=True, stable=True).indices[:, :left_over]

    states = working(hidden_states)
    kept = states.gather(1, torch.cat([cls, raster + 1], 1)[..., None].expand(-1, -1, states.shape[-1]))
    merged, targets = _merge_rest(states[:, 1:], key_metric[:, 1:], rest_index, contextual)
    return VisionZipTokens(
        torch.cat([kept, merged], 1).to(hidden_states.dtype), torch.cat([cls, ranked + 1], 1), targets
    )


def _merge_rest(
    states: Float[Tensor, "b n c"], keys: Float[Tensor, "b n e"], rest: Int[Tensor, "b m"], contextual: int
) -> tuple[Float[Tensor, "b k c"], Int[Tensor, "b k"]]:
    if contextual == 0:
        return states[:, :0], rest[:, :0]
    m = rest.shape[1]
    places = torch.arange(contextual, device=rest.device) * max(1, m // contextual)
    joins = torch.ones(m, dtype=torch.bool, device=rest.device).index_fill(0, places, False)
    others = joins.int().sort(descending=True, stable=True).indices[: m - contextual]
    rows = unit64(keys).gather(1, rest[..., None].expand(-1, -1, keys.shape[-1]))
    features = states.gather(1, rest[..., None].expand(-1, -1, states.shape[-1]))
    likeness = rows[:, others] @ rows[:, places].transpose(1, 2)  # (b, others, targets)
    group = lowest_best(likeness.flatten(0, 1), TIED).reshape(likeness.shape[:2])
    member = torch.nn.functional.one_hot(group, contextual).to(features.dtype)
    share = member / member.sum(1, keepdim=True).clamp_min(1)  # (b, others, k); a sum of features could overflow
    return features[:, places] + share.transpose(1, 2) @ features[:, others], rest[:, places]


VISION_CLS = Signal("vision_cls", "1 c", FromProjector(lambda seen: seen.states[seen.last], cls=True))
"""The CLS token's row beside `VISION_STATES`."""


@strategy("visionzip", paper="VisionZip, CVPR 2025, arXiv 2412.04467")
class VisionZip(Stage):
    """Keep the CLS token and the most attended patches, and merge the rest into a few tokens (VisionZip, CVPR 2025).

    Definition, paper's code and deviations: `tokenprune.baselines.visionzip`. Merging happens on states of the vision
    tower, which then go through the projector. A budget of every token there is leaves the image untouched.

    Args:
        keep: tokens (int) or share of the image's original tokens (float), CLS and contextual tokens included; 27/32 of
            them are dominant.

    Examples:
        >>> x = torch.eye(4)
        >>> tower = {CLS_ATTENTION: torch.tensor([[0.1, 0.6, 0.2, 0.1]]), VISION_KEYS: x, VISION_STATES: x}
        >>> tokens = Tokens(x, signals={**tower, VISION_CLS: torch.full((1, 4), 9.0), PROJECT: lambda rows: rows})
        >>> VisionZip(keep=2).select(tokens).features
        tensor([[9., 9., 9., 9.],
                [0., 1., 0., 0.]])
    """

    keep: Keep
    needs = (CLS_ATTENTION, VISION_STATES, VISION_CLS, VISION_KEYS, PROJECT)
    yields = "merged"
    promises = PLAIN - {"ascending"}  # the authors feed the tokens in another order

    def choose(self, tokens: Tokens) -> Choice:
        """Keep by attention, and merge the rest."""
        k, attention, keys = self.count(tokens), tokens[CLS_ATTENTION], tokens[VISION_KEYS]
        if k == tokens.n:
            return Choice.everything(tokens.visual, merges=True)
        dominant, contextual = visionzip_budget(k)
        made = visionzip(
            attention[None],
            torch.cat([tokens[VISION_CLS], tokens[VISION_STATES]])[None],  # (1, n + 1, c)
            torch.cat([torch.zeros_like(keys[:1]), keys])[None],  # the CLS token's key plays no part
            dominant,
            contextual,
        )
        patches = made.dominant_index_with_cls[0, 1:] - 1
        used = torch.cat([patches, made.contextual_index[0]])
        place_of_cls = exact_sum(attention, 0).index_fill(0, used, -torch.inf).argmax()
        indices = torch.cat([place_of_cls[None], patches.sort().values, made.contextual_index[0]])  # (k,)
        return Choice(indices, features=tokens[PROJECT](made.out_tokens[0]).to(tokens.visual.dtype))
