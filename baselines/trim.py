r"""TRIM: keep the patches that CLIP finds *least* similar to the prompt, and perhaps the mean of the others.

$s = \operatorname{softmax}_i(-\langle e_i, t \rangle)$ with $e_i$ the patch carried into CLIP's joint space and t
the text embedding, neither normalised. The number kept is $\lfloor n \cdot r \rfloor$; by default r is the share of
scores above $Q_3 + 1.5 (Q_3 - Q_1)$. "Plus" appends the plain mean of all dropped patches. Before the projector.

Paper: TRIM, arXiv 2409.10994. Checked against FreedomIntelligence/TRIM, commit
0e666770fc5393aa88590ff4a1a51eb86d01f723. The minus sign is the authors' and has no comment there.

Defects of the authors' program, reproduced by `official=True`:
- Without an outlier, or with a share below one patch, it keeps no patch. Default: at least one.
- The count goes through a share and back, `int(n * (count / n))`, which for some n loses one patch (never for 576).
  Default: the count itself.

The program pools the outlier share over the batch; here an image stands alone. It embeds the whole prompt, cut at 77
tokens; `tokenprune.models.Clip` embeds the question alone, in segments whose mean is taken (`long="cut"` cuts).

Deviations: scores in float64, ties to the lowest index. The paper's main rows use a fine-tuned language model. Choosing
tokens commutes with a projector that acts on single tokens; only the mean of the dropped ones is made before it, so
`plus` needs `Tokens.project`. In the strategy `keep` counts that token, and it takes the place of the best-scored
dropped patch.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, as_given, outlier_count, top, working
from tokenprune.core.budget import Keep
from tokenprune.core.checks import Yields
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLIP_TEXT, CLIP_VISUAL, PROJECT, VISION_STATES, Signal
from tokenprune.core.strategy import EQUIVARIANT, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import lowest_best, precise

__all__ = ["TRIM", "Trimmed", "trim", "trim_score", "with_mean_of_rest"]


class Trimmed(NamedTuple):
    """What TRIM keeps of one image.

    Attributes:
        kept_sorted: int64 (k,), ascending.
        score: float (n,).
        used_ratio: the share from which k came.
    """

    kept_sorted: Int[Tensor, " k"]
    score: Float[Tensor, " n"]
    used_ratio: float


def trim_score(clip_projected_patches: Float[Tensor, "n p"], clip_text: Float[Tensor, " p"]) -> Float[Tensor, " n"]:
    """Softmax over patches of minus the dot product with the text embedding.

    Examples:
        >>> trim_score(torch.tensor([[0.0], [100.0]]), torch.tensor([1.0]))
        tensor([1.0000e+00, 3.7835e-44])
    """
    return as_given(_logits(clip_projected_patches, clip_text).softmax(0), clip_projected_patches)


def _logits(patches: Float[Tensor, "n p"], text: Float[Tensor, " p"]) -> Float[Tensor, " n"]:
    return -(precise(patches) @ precise(text))


def _kept(logits: Float[Tensor, " n"], count: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    # The softmax keeps the order, but makes small scores equal.
    return top(logits, count, slack=_slack(logits))


def _slack(logits: Float[Tensor, " n"]) -> Float[Tensor, " 1"]:
    """The distance within which logits are ties."""
    return (TIED * logits.abs().amax())[None]


def trim(
    clip_projected_patches: Float[Tensor, "n p"],
    clip_text: Float[Tensor, " p"],
    *,
    ratio: float | None = None,
    official: bool = False,
) -> Trimmed:
    """Choose the patches to keep.

    Args:
        clip_projected_patches: (n, p), patches after CLIP's final layer norm and visual projection, not normalised.
        clip_text: (p,), CLIP text embedding of the prompt, not normalised.
        ratio: share of the patches to keep, rounded down but at least one; None counts outliers (the program's k = -1).
        official: count as the authors' program does (see the file's docstring).

    Raises:
        ValueError: when ratio is not in (0, 1].

    Examples:
        >>> trim(torch.tensor([[0.0], [2.0], [-1.0]]), torch.tensor([1.0]), ratio=0.67).kept_sorted
        tensor([0, 2])
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"trim: ratio must be in (0, 1] or None (count outliers), got {ratio}")
    logits = _logits(clip_projected_patches, clip_text)
    score = logits.softmax(0)
    n = score.shape[0]
    outliers = outlier_count(score) if ratio is None else 0
    share = outliers / n if ratio is None else ratio
    count = outliers if ratio is None and not official else int(n * share)
    kept = _kept(logits, count if official else max(1, count))[0]
    return Trimmed(kept, as_given(score, clip_projected_patches), share)


def with_mean_of_rest(features: Float[Tensor, "n c"], kept: Int[Tensor, " k"]) -> Float[Tensor, "r c"]:
    """The kept rows, then the mean of all others; when there are no others, the kept rows alone.

    Examples:
        >>> with_mean_of_rest(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0]))
        tensor([[1.],
                [3.]])
    """
    rest = torch.ones(features.shape[0], dtype=torch.bool, device=features.device).index_fill(0, kept, False)
    if kept.shape[0] == features.shape[0]:
        return features[kept]
    weights = rest.to(working(features).dtype) / (features.shape[0] - kept.shape[0])
    mean = (weights @ working(features)).to(features.dtype)
    return torch.cat([features[kept], mean[None]])


@strategy("trim", paper="TRIM, arXiv 2409.10994")
class TRIM(Stage):
    """Keep the patches least similar to the prompt in CLIP's joint space (TRIM, arXiv 2409.10994).

    Definition, paper's code and deviations: `tokenprune.baselines.trim`. Several rows of `CLIP_TEXT` are
    averaged.

    Args:
        keep: "adaptive" (the authors' default: score outliers), or the number of tokens (int) or share of the image's
            original tokens (float).
        plus: also keep the mean of the dropped patches as one token; `keep` counts it. Needs the vision tower's states
            and the projector.

    Examples:
        >>> clip = torch.tensor([[0.0], [2.0], [-1.0]])
        >>> tokens = Tokens(torch.zeros(3, 4), signals={CLIP_VISUAL: clip, CLIP_TEXT: torch.ones(1, 1)})
        >>> TRIM(keep=2).select(tokens).indices
        tensor([0, 2])
    """

    keep: Keep | Literal["adaptive"] = "adaptive"
    plus: bool = False

    @property
    def needs(self) -> tuple[Signal, ...]:
        """CLIP's joint space; with `plus` what a new token is made of."""
        return (CLIP_VISUAL, CLIP_TEXT, VISION_STATES, PROJECT) if self.plus else (CLIP_VISUAL, CLIP_TEXT)

    @property
    def yields(self) -> Yields:
        """With `plus` one token is new."""
        return "merged" if self.plus else "subset"

    @property
    def promises(self) -> frozenset[Promise]:
        """With `plus` the new token comes last."""
        return EQUIVARIANT - {"ascending"} if self.plus else EQUIVARIANT

    def choose(self, tokens: Tokens) -> Choice:
        """Keep the least similar patches, and with `plus` the mean of the others."""
        logits = _logits(tokens[CLIP_VISUAL], precise(tokens[CLIP_TEXT]).mean(0))
        requested = self.requested(tokens)
        wanted = max(1, outlier_count(logits.softmax(0))) if requested is None else min(requested, tokens.n)
        scores = as_given(logits.softmax(0), tokens.visual)
        # The mean of the rest is one token of the budget, unless everything or a single patch is kept.
        mean = self.plus and wanted < tokens.n and (requested is None or wanted > 1)
        patches, order = _kept(logits, wanted - (mean and requested is not None))
        if not self.plus:
            return Choice(patches, order=order, scores=scores)
        if not mean:
            return Choice(patches, features=tokens.visual[patches], scores=scores)
        place = lowest_best(logits.index_fill(0, patches, -torch.inf)[None], _slack(logits)[None])[0]
        made = tokens[PROJECT](with_mean_of_rest(tokens[VISION_STATES], patches)[-1:]).to(tokens.visual.dtype)
        features = torch.cat([tokens.visual[patches], made])  # (k, d)
        return Choice(torch.cat([patches, place[None]]), features=features, scores=scores)
