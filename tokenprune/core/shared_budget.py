"""One budget for all images of a prompt: how many tokens each of them may keep."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor, isfinite
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import check_choice, strategy
from tokenprune.core.places import order_of
from tokenprune.core.selection import Choice
from tokenprune.core.signals import PROMPT_NUMBER, Signal
from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.tokens import Tokens
from tokenprune.core.wrappers import Wrapper

AllocationRule = Callable[[Sequence[Tokens]], Sequence[float]]
"""From the images of one prompt to a weight for each, none negative: budgets are proportional to the weights."""

_FAINT = Fraction(1, 10**9)
"""Weight of an image with weight 0, relative to the largest: it takes what the others cannot hold."""


def allocate(total: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    r"""Share `total` tokens among images in proportion to weights, exactly.

    $k_i=\mathrm{round}(\min(\max(\lambda w_i,1),n_i))$ with $\lambda$ such that the sum is `total`; rounding by the
    largest remainder, ties to the first image. Computed in exact fractions.

    Args:
        total: tokens for all images together. Below one per image it counts as that, above all tokens as all.
        weights: one finite number >= 0 per image; all zero means equal weights.
        sizes: tokens that each image has, at least 1.

    Returns:
        One count per image, from 1 to its size.

    Raises:
        ValueError: when weights and sizes do not fit, or a weight is negative, NaN or infinite.

    Examples:
        >>> allocate(10, [1.0, 1.0, 2.0], [100, 100, 100])
        [3, 2, 5]
        >>> allocate(10, [1.0, 1.0, 2.0], [100, 100, 4])
        [3, 3, 4]
        >>> allocate(2, [1.0, 5.0, 5.0], [8, 8, 8])
        [1, 1, 1]
    """
    if len(weights) != len(sizes) or any(size < 1 for size in sizes):
        raise ValueError(f"allocate: {len(weights)} weights for sizes {list(sizes)}; give one per image with tokens")
    if any(not isfinite(weight) or weight < 0 for weight in weights):
        raise ValueError(f"allocate: weights must be finite and not negative, got {list(weights)}")
    if not sizes:
        return []
    total = min(max(total, len(sizes)), sum(sizes))
    largest = Fraction(max(weights))
    shares = [max(Fraction(w), _FAINT * largest) if largest else Fraction(1) for w in weights]

    def filled(level: Fraction) -> list[Fraction]:
        return [min(max(level * w, Fraction(1)), Fraction(n)) for w, n in zip(shares, sizes, strict=True)]

    # The sum grows with the level, in straight lines between the levels at which an image leaves or reaches a bound.
    corners = sorted({bound / w for w, n in zip(shares, sizes, strict=True) for bound in (Fraction(1), Fraction(n))})
    above = next(level for level in corners if sum(filled(level)) >= total)
    below = max((level for level in corners if level < above), default=above)
    low, high = sum(filled(below), Fraction(0)), sum(filled(above), Fraction(0))
    level = above if high == low else below + Fraction(total - low) / (high - low) * (above - below)
    exact = filled(level)
    counts = [floor(value) for value in exact]
    left = total - sum(counts)
    for i in sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))[:left]:
        counts[i] += 1
    return counts


def intra_diversity(visual: Float[Tensor, "n d"]) -> float:
    r"""Mean cosine distance of the tokens of one image: $D_{intra}=\frac1{n(n-1)}\sum_{i\ne j}(1-\cos(v_i,v_j))$.

    In float32 by $\|\sum\hat v_i\|^2$: O(n d). 0 for a single token.
    """
    n = visual.shape[0]
    if n == 1:
        return 0.0
    unit = normalize(visual.float(), dim=1)
    return max(0.0, 1.0 - (float(unit.sum(0).square().sum()) - float(unit.square().sum())) / (n * (n - 1)))


def inter_diversity(images: Sequence[Tokens]) -> list[float]:
    r"""How far each image is from the others: mean over $j\ne i$ of $1-\cos(\bar v_i,\bar v_j)$, means over tokens.

    1 for a single image.
    """
    if len(images) == 1:
        return [1.0]
    means = torch.stack([image.visual.float().mean(0) for image in images])
    distance = 1 - cosine_similarity(means[:, None], means[None], dim=2)
    distance.fill_diagonal_(0)
    return [max(0.0, value) for value in (distance.sum(1) / (len(images) - 1)).tolist()]


def _size(images: Sequence[Tokens]) -> list[float]:
    return [float(image.n) for image in images]


def _equal(images: Sequence[Tokens]) -> list[float]:
    return [1.0] * len(images)


def _intra(images: Sequence[Tokens]) -> list[float]:
    return [image.n * intra_diversity(image.visual) for image in images]


def _inter(images: Sequence[Tokens]) -> list[float]:
    return [image.n * value for image, value in zip(images, inter_diversity(images), strict=True)]


def _both(images: Sequence[Tokens]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(_intra(images), _inter(images), strict=True)]


_rules: dict[str, AllocationRule] = {
    "size": _size,
    "equal": _equal,
    "intra": _intra,
    "inter": _inter,
    "intra_inter": _both,
}


def allocation_rules() -> tuple[str, ...]:
    """Names of the rules, for `PromptBudget(rule=...)`."""
    return tuple(_rules)


def register_allocation(name: str, rule: AllocationRule) -> None:
    """Make a rule known to this process.

    Args:
        name: what `rule=` calls it; an identifier that is not taken.
        rule: from the images of one prompt to a weight for each.

    Raises:
        ValueError: when the name is taken or no identifier.
    """
    if not name.isidentifier() or _rules.get(name, rule) is not rule:
        raise ValueError(
            f"register_allocation: name must be a new identifier, got {name!r} (known: {', '.join(_rules)})"
        )
    _rules[name] = rule


@strategy("prompt_budget")
class PromptBudget(Wrapper):
    """One budget for all images of a prompt, shared by size or diversity; a strategy then chooses within each image.

    Rules: "size" gives every image the same share of its tokens, "equal" the same number; "intra" weighs the size with
    the diversity of the image's tokens (`intra_diversity`), "inter" with its distance from the other images
    (`inter_diversity`), "intra_inter" with the mean of both. The last three are *inspired by* TrimTokenator-LC (arXiv
    2512.22748), whose budgets follow the diversity within and between images; its formulas for the diversity between
    images and for the shares are not public, and its later stages (a global filter, a Pareto choice) are not here.

    Images belong together by `PROMPT_NUMBER`; those without it are prompts of their own. Every image keeps at least one
    token and none gets more than it has; the counts add up to the budget exactly (`allocate`).

    Args:
        strategy: what chooses within an image; its own `keep` (a pipeline's last one) is replaced by the image's count.
        keep: tokens (int) or share of the original tokens (float) of all images of the prompt together.
        rule: one of `allocation_rules()`.

    Examples:
        >>> from tokenprune import GreedyRepMax
        >>> one = {PROMPT_NUMBER: 0}
        >>> a, b = Tokens(torch.eye(8), signals=one), Tokens(torch.eye(24), signals=one)
        >>> [s.kept for s in PromptBudget(GreedyRepMax(1.0), keep=8).select_batch([a, b])]
        [2, 6]
    """

    example: ClassVar[str] = "prompt_budget(mi_alignment(keep=1.0), keep=0.5)"

    strategy: PruningStrategy
    keep: Keep
    rule: str = "size"

    def __post_init__(self) -> None:
        check_choice("PromptBudget", "rule", self.rule, tuple(_rules))
        if len({order_of(stage.place) for stage in self.strategy.stages}) > 1:
            raise ValueError(
                f"PromptBudget: the stages of {self.strategy!r} act at different places; put the budget around the "
                "last one alone"
            )
        if isinstance(self.strategy, PromptBudget):
            raise ValueError(
                f"PromptBudget: {self.strategy!r} shares a budget already; choose a strategy for one image"
            )
        self.strategy.with_keep(1)

    @property
    def inner(self) -> PruningStrategy:
        """What chooses within an image."""
        return self.strategy

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Those of the strategy, and which images share a prompt."""
        return (*self.strategy.needs, PROMPT_NUMBER)

    def requested(self, tokens: Tokens) -> int | None:
        """Answer None: it depends on the other images of the prompt."""
        return None

    def counts(self, images: Sequence[Tokens]) -> list[int]:
        """Count the tokens to keep of each image; images of one prompt share a budget."""
        members: dict[object, list[int]] = {}
        for i, image in enumerate(images):
            prompt = image[PROMPT_NUMBER]
            members.setdefault(("alone", i) if prompt is None else prompt, []).append(i)
        counts = [0] * len(images)
        for group in members.values():
            mine = [images[i] for i in group]
            total = keep_count(self.keep, sum(image.original for image in mine))
            shares = allocate(total, _rules[self.rule](mine), [image.n for image in mine])
            for i, count in zip(group, shares, strict=True):
                counts[i] = count
        return counts

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Let the strategy choose with each image's count."""
        counts = self.counts([tokens.detached() for tokens in batch])
        found: dict[int, Choice] = {}
        for count in sorted(set(counts)):  # images with the same count are chosen from together
            members = [i for i, mine in enumerate(counts) if mine == count]
            chosen = self.strategy.with_keep(count).select_batch([batch[i] for i in members])
            found.update(zip(members, chosen, strict=True))
        return [found[i] for i in range(len(batch))]
