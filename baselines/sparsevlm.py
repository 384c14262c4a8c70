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

Deviations: float64, ties to the lowest index. Budgets other than the four published ones need schedules of their
own: the strategy scales a published one, or leaves the same share at each stage. The program always drops at least one
token, also with a budget of all; the strategy then keeps everything and recycles nothing. Text must stand behind the
image. With several images in a prompt each has the text behind it as raters, and its recycled tokens stand behind its
kept ones. In models of fewer than 32 layers the default layers are those at the same share of the depth.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.arguments import LARGEST, brief, check_real
from tokenprune.baselines.layer_budget import layers_at_depth
from tokenprune.baselines.scoring import TIED, as_given, check_count, exact_sum, top
from tokenprune.core.budget import Keep, check_keep, keep_count
from tokenprune.core.fields import Layer, Layers, Seed, check_choice, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.signals import DECODER_ENTERED, DECODER_HIDDEN, DECODER_TEXT, DECODER_TEXT_ATTENTION, IMAGE_KEY
from tokenprune.core.strategy import EQUIVARIANT, Stage, Staged
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import lowest_best, precise

__all__ = [
    "LAYERS",
    "SCHEDULES",
    "SparseVLM",
    "SparseVLMSplit",
    "SparseVLMStage",
    "recycle",
    "recycled_count",
    "sparsevlm_keep",
    "sparsevlm_raters",
    "sparsevlm_score",
    "sparsevlm_stage",
]

LAYERS = (2, 6, 15)
SCHEDULES = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
"""Image tokens kept after each stage, merged ones not counted, by the published (layer-averaged) budget."""


_SAFE = {torch.float32: (-40, 50), torch.float64: (-400, 450)}
"""Between these powers of two squares of coordinates can be added up."""


class SparseVLMSplit(NamedTuple):
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
    score = exact_sum((precise(visual) @ precise(text).T).softmax(-1), 0) / visual.shape[0]
    above = score > score.mean() + TIED
    return torch.where(above.any(), above, torch.ones_like(above)).nonzero().flatten(), as_given(score, visual)


def sparsevlm_score(attn_rater_rows_headmean: Float[Tensor, "r n"]) -> Float[Tensor, " n"]:
    """Mean over raters of the head-mean attention to each image token."""
    return as_given(_score(attn_rater_rows_headmean), attn_rater_rows_headmean)


def _score(attn_rater_rows_headmean: Float[Tensor, "r n"]) -> Float[Tensor, " n"]:
    return exact_sum(attn_rater_rows_headmean, 0) / attn_rater_rows_headmean.shape[0]


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


def recycled_count(dropped: int) -> int:
    """How many tokens `dropped` ones are merged into: int(m / 10) + 1 of the int(0.3 dropped) + 1 best.

    Examples:
        >>> recycled_count(276), recycled_count(1), recycled_count(0)
        (9, 1, 0)
    """
    return (int(0.3 * dropped) + 1) // 10 + 1 if dropped else 0


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
        >>> recycle(torch.tensor([[0.0], [0.5], [5.0], [5.5]]), clusters=2).round(decimals=2).flatten()
        tensor([0.2500, 5.2500])
    """
    m, width = features.shape
    c = m // 10 + 1 if clusters is None else clusters
    check_count("recycle", "clusters", c, m)
    x = precise(features)
    # Squares of very large or tiny numbers leave the range. A power of two prevents it and changes no digit of the
    # others, for which it is 1.
    exponent = torch.frexp(x.abs().amax()).exponent
    scale = torch.ldexp(x.new_ones(()), exponent.clamp(*_SAFE[x.dtype]) - exponent)
    distance = torch.cdist(x * scale, x * scale, compute_mode="donot_use_mm_for_euclid_dist") / width**0.5
    density = (-(distance.sort(dim=-1).values[:, :c] / scale).square().mean(-1)).exp()
    if noise is not None:
        density = density + noise.to(density.dtype)
    place = torch.arange(m, device=x.device)
    tied = TIED if noise is None else 0.0
    earlier = ((density[None] - density[:, None]).abs() <= tied) & (place[None] < place[:, None]) & (noise is None)
    denser = (density[None] > density[:, None] + tied) | earlier
    farthest = distance.amax()
    delta = torch.where(denser, distance, farthest).amin(-1)
    slack = (TIED * farthest)[None]
    centres = top(density * delta, c, slack=slack)[1]
    group = lowest_best(-distance[centres].T, slack[None])
    group = group.index_copy(0, centres, torch.arange(c, device=x.device))
    count = x.new_zeros(c).index_add(0, group, x.new_ones(m))
    share = 1 / (count + 1e-6)[group, None]  # (m, 1); a sum of features could overflow
    return x.new_zeros((c, width)).index_add(0, group, x * share).to(features.dtype)


def sparsevlm_stage(
    attn_rater_rows_headmean: Float[Tensor, "r n"],
    keep: int,
    *,
    features: Float[Tensor, "n d"] | None = None,
    noise: Float[Tensor, " m"] | None = None,
) -> SparseVLMSplit:
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
    score = _score(attn_rater_rows_headmean)
    kept, recycled = sparsevlm_keep(score, keep)
    merged = None if features is None else recycle(features[recycled], noise=noise)
    return SparseVLMSplit(kept, recycled, merged, as_given(score, attn_rater_rows_headmean))


@strategy("sparsevlm_stage", paper="SparseVLM, ICML 2025, arXiv 2410.04417 (one stage)")
class SparseVLMStage(Stage):
    """Keep what the raters look at, and merge the best of the rest into a few tokens (one stage of SparseVLM).

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        layer: the first decoder layer with fewer tokens, counted from 0; the layer before decides.
        power: of n original tokens and a budget of k, factor n (k / n)^power stay.
        factor: see there.
        official: break ties in the recycling by random noise, and drop at least one token, as the authors' program.
        seed: of that noise, together with the image's `key`.

    Examples:
        >>> rows = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
        >>> layer = {DECODER_TEXT_ATTENTION: rows, DECODER_HIDDEN: torch.arange(8.0).view(4, 2)}
        >>> inputs = {DECODER_ENTERED: torch.eye(2), DECODER_TEXT: torch.ones(1, 2)}
        >>> selection = SparseVLMStage(2).select(Tokens(torch.zeros(4, 2), signals={**layer, **inputs}))
        >>> selection.indices, selection.extra.round()
        (tensor([1, 3]), tensor([[4., 5.]]))
    """

    keep: Keep
    layer: Layer = LAYERS[0] + 1
    power: float = 1.0
    factor: float = 1.0
    official: bool = False
    seed: Seed = 0
    needs = (DECODER_TEXT_ATTENTION, DECODER_HIDDEN, DECODER_ENTERED, DECODER_TEXT, IMAGE_KEY)
    yields = "extended"
    promises = EQUIVARIANT

    def __post_init__(self) -> None:
        check_real("SparseVLMStage", "power", self.power, 0, 1)
        object.__setattr__(self, "power", check_keep(float(self.power), owner="SparseVLMStage", parameter="power"))
        object.__setattr__(self, "factor", check_real("SparseVLMStage", "factor", self.factor, 1, LARGEST))

    @property
    def place(self) -> InDecoder:
        """The layer; positions are renumbered."""
        return InDecoder(self.layer, positions="compact")

    def requested(self, tokens: Tokens) -> int | None:
        """Count the budget, or what is left of the image at this stage."""
        n, kept = tokens.original, keep_count(self.keep, tokens.original)
        if self.power != 1.0 or self.factor != 1.0:
            kept = math.floor(self.factor * n * (kept / n) ** self.power + 0.5 + 1e-9)
        return min(kept, max(1, tokens.n - 1)) if self.official else kept

    def foresee(self, left: int, original: int) -> int | None:
        """Count what is kept, and what the rest is merged into."""
        kept = super().foresee(left, original)
        return None if kept is None else kept + recycled_count(left - kept)

    def choose(self, tokens: Tokens) -> Choice:
        """Rank, keep, recycle."""
        attention, hidden, keep = tokens[DECODER_TEXT_ATTENTION], tokens[DECODER_HIDDEN], self.count(tokens)
        score = _score(attention[sparsevlm_raters(tokens[DECODER_ENTERED], tokens[DECODER_TEXT])[0]])  # (n,)
        shown = as_given(score, attention)
        if keep == tokens.n:
            return Choice(torch.arange(keep, device=score.device), extra=tokens.visual[:0], scores=shown)
        kept, recycled = sparsevlm_keep(score, keep)
        noise = self._noise(recycled.shape[0], tokens[IMAGE_KEY]).to(score.device) if self.official else None
        merged = recycle(hidden[recycled], noise=noise).to(tokens.visual.dtype)
        return Choice(kept, extra=merged, scores=shown)

    def _noise(self, count: int, key: int) -> Tensor:
        """Uniform in [0, 1e-6)."""
        state = np.random.SeedSequence([self.seed, key % 2**64]).generate_state(1, np.uint64)[0]
        return torch.rand(count, generator=torch.Generator().manual_seed(int(state) >> 1)) * 1e-6


@strategy("sparsevlm", paper="SparseVLM, ICML 2025, arXiv 2410.04417")
class SparseVLM(Staged):
    """Keep in three stages of the language model what some text tokens look at, and recycle the rest (SparseVLM).

    The text tokens are those that look at the image more than others do. Of what a stage drops the better part is
    clustered into a few new tokens that stand behind the kept ones; later stages treat them like the others. So some of
    the `keep` tokens left behind the last stage may be such tokens, and its own new ones come on top: the record of
    `prune` counts both apart (`tokens_kept`, `extra_tokens`). Positions are renumbered at each stage.

    The published budgets are means over layers: `SparseVLM.published(192)` leaves 300, 200 and 110 of 576.
    `tokenprune.baselines.layer_budget` converts. Outside a model (`select`) later stages do not see recycled tokens.

    Definition, paper's code and deviations: `tokenprune.baselines.sparsevlm`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float) that survive the last stage.
        schedule: tokens left after each stage, scaled so that the last is `keep`: numbers such as (300, 200, 110), or
            the name of a published one, "192", "128", "96" or "64". None: each stage leaves the same share.
        layers: the first decoder layer with fewer tokens of each stage, ascending, counted from 0. None takes 3, 7, 16
            (the program's "after layers 2, 6, 15"), or in a model of fewer than 32 layers those at that share of it.
        official: break ties in the recycling by random noise, and drop at least one token, as the authors' program.
        seed: of that noise.

    Examples:
        >>> [stage.count(Tokens(torch.zeros(576, 2))) for stage in SparseVLM.published(192).stages]
        [300, 200, 110]
        >>> [stage.count(Tokens(torch.zeros(576, 2))) for stage in SparseVLM(0.125).stages]
        [288, 144, 72]
    """

    keep: Keep
    schedule: tuple[float, ...] | str | None = None
    layers: Layers | None = None
    official: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        if isinstance(self.schedule, str):
            check_choice("SparseVLM", "schedule", self.schedule, [str(budget) for budget in SCHEDULES])
        elif self.schedule is not None:
            if not isinstance(self.schedule, tuple | list) or not self.schedule:
                raise TypeError(
                    f"SparseVLM: schedule must be a tuple of numbers, one per stage, got {brief(self.schedule)}"
                )
            numbers = tuple(check_real("SparseVLM", "schedule", number, 0, LARGEST) for number in self.schedule)
            object.__setattr__(self, "schedule", numbers)
        counts = self._counts()
        if counts is not None and (
            len(counts) != len(self._layers()) or min(counts) <= 0 or any(b > a for a, b in pairwise(counts))
        ):
            raise ValueError(
                f"SparseVLM: schedule must be {len(self._layers())} positive numbers that do not grow, one for each of "
                f"the layers {self._layers()}, got {self.schedule!r}"
            )

    @classmethod
    def published(cls, budget: int) -> "SparseVLM":
        """The authors' schedule for 192, 128, 96 or 64 of 576 tokens, a mean over layers as their program counts."""
        check_choice("SparseVLM.published", "budget", str(budget), [str(known) for known in SCHEDULES])
        return cls(SCHEDULES[budget][-1], schedule=str(budget))

    def at_depth(self, depth: int) -> "SparseVLM":
        """Name the default layers."""
        return self if self.layers is not None else replace(self, layers=layers_at_depth(self._layers(), depth))

    def _layers(self) -> tuple[int, ...]:
        return self.layers if self.layers is not None else tuple(layer + 1 for layer in LAYERS)

    def _counts(self) -> tuple[float, ...] | None:
        return SCHEDULES[int(self.schedule)] if isinstance(self.schedule, str) else self.schedule

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per layer."""
        layers, counts = self._layers(), self._counts()
        return tuple(
            SparseVLMStage(
                self.keep,
                layer=layer,
                power=1.0 if counts else (step + 1) / len(layers),
                factor=counts[step] / counts[-1] if counts else 1.0,
                official=self.official,
                seed=self.seed,
            )
            for step, layer in enumerate(layers)
        )
