r"""DART: a few pivots with large keys, then the image tokens that resemble them least.

Before layer K = 2: pivots are the 4 image tokens and the 4 tokens after the image with the largest $\lVert k
\rVert_1$ (keys of layer K - 1 after rotary embedding, heads side by side). Each pivot in turn claims the q
unclaimed image tokens with the *lowest* cosine to it, on the output of layer K - 1 passed through the model's final
norm. Kept: the image pivots and all claimed tokens, $4 + 8 q$; text pivots only steer. Positions stay the original
ones.

Paper: DART, EMNLP 2025 (arXiv 2502.11494). Checked against ZichenWen1/DART, commit
5a19452fc173017191c247848673e0bde755695a.

Defects of the authors' program, reproduced by `official=True`:
- Pivots take turns in the iteration order of a CPython set of absolute positions, roughly position modulo 32, so
  the answer depends on the length of the prompt. Default: image pivots, then text pivots, each by falling norm.

Further, whatever the switch: q = N // 8, so a budget of N keeps N + 4 tokens when 8 divides N (`dart_per_pivot`).

Deviations: norms and cosines in float64, ties to the lowest index. The strategy meets its budget k exactly: k - 4
tokens are shared among the 8 pivots, the first ones claim one more where they do not divide; k = N + 4 is the
program's answer to N. With several images in a prompt, each has its pivots in the text after it. With less text than
text pivots, or fewer image tokens than are to be claimed, all of them are taken; the program stops. In a model
positions count from the first token of each prompt, so that padding does not change the norms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, check_count, exact_sum, top
from tokenprune.core.budget import Keep
from tokenprune.core.fields import Count, Layer, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.signals import FromDecoder, FromStates, Signal
from tokenprune.core.strategy import EQUIVARIANT, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.blocks import cosines_with

__all__ = ["DART", "DartTokens", "dart", "dart_per_pivot", "dart_pivots"]


class DartTokens(NamedTuple):
    """What DART keeps.

    Attributes:
        retained: int64 (k,), image tokens counted from the first one, ascending.
        pivot_image: int64 (p,), absolute positions, by falling norm.
        pivot_text: int64 (t,), absolute positions, by falling norm.
        pivot_order: int64 (p + t,), absolute positions in the order in which pivots claimed.
    """

    retained: Int[Tensor, " k"]
    pivot_image: Int[Tensor, " p"]
    pivot_text: Int[Tensor, " t"]
    pivot_order: Int[Tensor, " r"]


def dart_per_pivot(
    n_image: int,
    *,
    max_num_trunction: int | None = 128,
    reduction_ratio: float = 0.778,
    llava_next_retain: int | None = None,
    pivot_image: int = 4,
    pivot_text: int = 4,
) -> int:
    """How many tokens each pivot claims, as the authors count.

    Args:
        n_image: number of image tokens.
        max_num_trunction: nominal budget N; when given, `reduction_ratio` has no effect.
        reduction_ratio: share removed, used when `max_num_trunction` is None.
        llava_next_retain: budget for several tiles, at most n_image - pivot_image; comes before the others.
        pivot_image: number of image pivots.
        pivot_text: number of text pivots.

    Examples:
        >>> dart_per_pivot(576), dart_per_pivot(576, max_num_trunction=None)
        (16, 15)
        >>> dart_per_pivot(2880, llava_next_retain=320)
        40
    """
    pivots = pivot_image + pivot_text
    if llava_next_retain is not None:
        return int(min(llava_next_retain, n_image - pivot_image) // pivots)
    budget = n_image * (1 - reduction_ratio) if max_num_trunction is None else max_num_trunction
    return int(budget // pivots)


def dart_pivots(
    keys: Float[Tensor, "h l e"], *, image_start: int, n_image: int, pivot_image: int = 4, pivot_text: int = 4
) -> tuple[Int[Tensor, " p"], Int[Tensor, " t"]]:
    """Absolute positions of the image and text pivots, each by falling L1 norm of the key.

    Examples:
        >>> keys = torch.tensor([[[0.0], [1.0], [-3.0], [2.0], [5.0]]])
        >>> dart_pivots(keys, image_start=1, n_image=2, pivot_image=1, pivot_text=1)
        (tensor([2]), tensor([4]))
    """
    length, end = keys.shape[1], image_start + n_image
    check_count("dart", "image_start", image_start, length - n_image, lowest=0)
    check_count("dart", "pivot_image", pivot_image, n_image, lowest=0)
    norms = exact_sum(keys.abs().transpose(0, 1).flatten(1), 1)
    image = top(norms[image_start:end], pivot_image)[1] + image_start
    return image, top(norms[end:], min(pivot_text, length - end))[1] + end


def dart(
    normed_hidden: Float[Tensor, "l d"],
    keys: Float[Tensor, "h l e"],
    *,
    image_start: int,
    n_image: int,
    per_pivot: int | Sequence[int],
    pivot_image: int = 4,
    pivot_text: int = 4,
    official: bool = False,
) -> DartTokens:
    """Choose the image tokens that stay.

    Args:
        normed_hidden: (l, d), output of layer K - 1 after the model's final norm.
        keys: (heads, l, head width), keys of layer K - 1 after rotary embedding.
        image_start: position of the first image token.
        n_image: number of image tokens.
        per_pivot: tokens that each pivot claims (`dart_per_pivot`), one number for all or one for each in turn.
        pivot_image: number of image pivots.
        pivot_text: number of pivots after the image.
        official: let the pivots claim in the order of a CPython set, as the authors' program does (waits for the
            device once).

    Returns:
        Kept tokens and pivots; `len(retained) == pivot_image + (pivot_image + pivot_text) * per_pivot`.

    Raises:
        ValueError: when the image does not fit into the sequence, or a count is negative or too large.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> dart(x, x[None], image_start=0, n_image=4, per_pivot=1, pivot_image=1, pivot_text=0).retained
        tensor([1, 2])
    """
    for claims in [per_pivot] if isinstance(per_pivot, int) else per_pivot:
        check_count("dart", "per_pivot", claims, n_image, lowest=0)
    image, text = dart_pivots(
        keys, image_start=image_start, n_image=n_image, pivot_image=pivot_image, pivot_text=pivot_text
    )
    pivots = torch.cat([image, text])
    if official:
        pivots = torch.tensor(list(set(pivots.tolist())), dtype=torch.int64, device=image.device)
    unlikeness = -cosines_with(normed_hidden, pivots)[:, image_start : image_start + n_image]
    claimed = torch.zeros(n_image, dtype=torch.bool, device=image.device).index_fill(0, image - image_start, True)
    free = n_image - image.shape[0]
    quotas = [per_pivot] * pivots.shape[0] if isinstance(per_pivot, int) else per_pivot
    if len(quotas) != pivots.shape[0]:
        raise ValueError(f"dart: per_pivot has {len(quotas)} numbers for {pivots.shape[0]} pivots; give one per pivot")
    for row, quota in zip(unlikeness, quotas, strict=True):
        take = min(quota, free)
        claimed = claimed.index_fill(0, top(row.masked_fill(claimed, -torch.inf), take, slack=TIED)[1], True)
        free -= take
    kept = n_image - free
    retained = claimed.int().sort(descending=True, stable=True).indices[:kept].sort().values
    return DartTokens(retained, image, text, pivots)


KEYS = Signal("decoder_keys", "n e", FromDecoder(lambda seen: _flat(seen.keys)[seen.image]))
"""Keys of the layer before, after rotary embedding, heads side by side."""
TEXT_KEYS = Signal("decoder_text_keys", "_ e", FromDecoder(lambda seen: _flat(seen.keys)[seen.text]))
"""The same of the text after the image."""
STATES = Signal("decoder_states", "n state", FromStates(lambda seen: seen.normed[seen.image]))
"""Output of the layer before, after the language model's final norm."""
TEXT_STATES = Signal("decoder_text_states", "_ state", FromStates(lambda seen: seen.normed[seen.text]))
"""The same of the text after the image."""


def _flat(heads: Float[Tensor, "g k e"]) -> Float[Tensor, "k f"]:
    return heads.transpose(0, 1).flatten(1)


@strategy("dart", paper="DART, EMNLP 2025, arXiv 2502.11494")
class DART(Stage):
    """Inside the language model, keep a few pivots and the image tokens least like them (DART, EMNLP 2025).

    `keep` are the tokens left at the end: DART with a nominal budget of 128 keeps 132, so `DART(132)`.

    Definition, paper's code and deviations: `tokenprune.baselines.dart`.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        layer: the first decoder layer with fewer tokens, counted from 0; keys and output of the layer before decide.
        pivot_image: number of pivots among the image tokens.
        pivot_text: number of pivots among the text behind the image; they only steer.

    Examples:
        >>> keys, text = torch.tensor([[1.0], [9.0], [2.0]]), torch.zeros(0, 1)
        >>> states = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
        >>> decoder = {KEYS: keys, STATES: states, TEXT_KEYS: text, TEXT_STATES: torch.zeros(0, 2)}
        >>> DART(keep=2, pivot_image=1).select(Tokens(torch.zeros(3, 2), signals=decoder)).indices
        tensor([1, 2])
    """

    keep: Keep
    layer: Layer = 2
    pivot_image: Count = 4
    pivot_text: Count = 4
    needs = (KEYS, STATES, TEXT_KEYS, TEXT_STATES)
    promises = EQUIVARIANT

    def __post_init__(self) -> None:
        check_count("DART", "pivot_image", self.pivot_image, 1_000_000)

    @property
    def place(self) -> InDecoder:
        """The layer; positions stay."""
        return InDecoder(self.layer, positions="original")

    def choose(self, tokens: Tokens) -> Choice:
        """Claim tokens for the pivots in turn."""
        keys, states, text_keys, text_states = (tokens[signal] for signal in self.needs)
        k = self.count(tokens)
        image, text = min(self.pivot_image, k), min(self.pivot_text, text_keys.shape[0])
        each, more = divmod(k - image, image + text)
        kept = dart(
            torch.cat([states, text_states]),
            torch.cat([keys, text_keys])[None],
            image_start=0,
            n_image=tokens.n,
            per_pivot=[each + (pivot < more) for pivot in range(image + text)],
            pivot_image=image,
            pivot_text=text,
        )
        return Choice(kept.retained)
