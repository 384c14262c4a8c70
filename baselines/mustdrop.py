r"""MustDrop: merge uniform windows in the vision tower, then drop by two thresholds in the language model.

1. After the tower's first layer: windows of 3 x 3 patches whose mean pairwise cosine is at least 0.8 are averaged.
2. Key set: the $\lceil 0.08\,n \rceil$ patches with the largest head-mean CLS attention of the tower's last layer.
3. In language model layers 2, 6, 10, 14, with a the head-mean attention from text to image tokens: drop i when
   $\sum_t a_{ti} < g \sum_{t,j} a_{tj}$ and $\max_t a_{ti} < m$, unless i is in the key set.

Paper: MustDrop, arXiv 2411.10803. Checked against liuting20/MustDrop, commit
909afa538bff22e10c02db2da101aa1870e21912 (window merging and filter).

Step 1 is in `tokenprune.baselines.mustdrop_windows`, steps 2 and 3 are here.

Traps of the authors' program: its default thresholds (1.0, 0) drop nothing, and those in its scripts differ per
data set (TextVQA: 192 = (.001, .001), 128 = (.0012, .001), 64 = (.011, .01)), so "192 tokens" is an average over a
data set. The merged windows come first, by falling similarity, so raster order is lost. In a batch it merges as
many windows in every image as in the one with the fewest; here each image stands alone.

Deviations: attention is summed in float64. When the thresholds would drop everything, the token with the largest
sum stays; with `official=True` nothing does. The strategy is steps 2 and 3; `merge=True` puts step 1 in front. The
caches of layers 2 to 14, which the program cuts to the final set after the prompt, keep what entered each layer.
The key set is a share of the image's original tokens; after merging in the tower, as in the program, of the tokens
that enter the language model. In models of fewer than 32 layers the default layers are those at the same share of
the depth.
"""

from dataclasses import replace
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.layer_budget import layers_at_depth
from tokenprune.baselines.mustdrop_windows import (
    MergedWindows,
    MustDropMerge,
    check_window,
    mustdrop_merge,
    window_similarity,
)
from tokenprune.baselines.scoring import as_given, check_count, exact_sum, head_mean, top
from tokenprune.core.fields import Layer, Layers, Share, check_choice, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLS_ATTENTION, DECODER_ENTERED, DECODER_TEXT_ATTENTION, TOWER_SIZE
from tokenprune.core.strategy import EQUIVARIANT, Stage, Staged
from tokenprune.core.tokens import Tokens

__all__ = [
    "LAYERS",
    "THRESHOLDS",
    "MergedWindows",
    "MustDrop",
    "MustDropMerge",
    "MustDropStage",
    "mustdrop_filter",
    "mustdrop_key_set",
    "mustdrop_merge",
    "window_similarity",
]

LAYERS = (2, 6, 10, 14)
THRESHOLDS = {192: (0.001, 0.001), 128: (0.0012, 0.001), 64: (0.011, 0.01)}
"""Global and individual threshold of the authors' TextVQA script by the average that they reach there."""


def mustdrop_key_set(cls_attention: Float[Tensor, "h n"], *, share: float = 0.08) -> Int[Tensor, " k"]:
    """The patches that are never dropped: the ceil(share * n) of largest mean CLS attention, ascending.

    Examples:
        >>> mustdrop_key_set(torch.tensor([[0.1, 0.5, 0.4]]), share=0.4)
        tensor([1, 2])
    """
    if not 0 < share <= 1:
        raise ValueError(f"mustdrop_key_set: share must be in (0, 1], got {share}")
    return top(head_mean(cls_attention), ceil(share * cls_attention.shape[1]))[0]


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
    attention = exact_sum(attn_text_to_visual, 0, over=(-3, -2, -1)) / attn_text_to_visual.shape[0]
    total = exact_sum(attention, 0)
    kept = (total >= global_thr * exact_sum(total, 0, over=(0,))) | (attention.amax(0) >= individual_thr)
    if key_set is not None:
        kept = kept.index_fill(0, key_set, True)
    if official:
        return kept.nonzero().flatten()
    kept = torch.where(kept.any(), kept, torch.nn.functional.one_hot(total.argmax(), total.shape[0]).bool())
    return kept.nonzero().flatten()


LAST_ATTENTION = CLS_ATTENTION.at(-1)
"""Attention of the CLS token in the tower's last layer."""


@strategy("mustdrop_stage", paper="MustDrop, arXiv 2411.10803 (one stage in the decoder)")
class MustDropStage(Stage):
    """Drop what no text token attends to, unless the vision tower's CLS token does (one stage of MustDrop).

    Args:
        global_thr: share of all attention from the text below which a token may go.
        individual_thr: attention below which every text token must stay for it to go.
        layer: the first decoder layer with fewer tokens, counted from 0; the layer before decides.
        key_share: share of the image's original tokens, those of largest CLS attention, that never go; 0 for none.
            When the vision tower merged, it is a share of the tokens that enter the language model.

    Examples:
        >>> rows = torch.tensor([[0.5, 0.01, 0.3, 0.01], [0.6, 0.02, 0.0, 0.03]])
        >>> tower = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        >>> signals = {DECODER_TEXT_ATTENTION: rows, LAST_ATTENTION: tower, DECODER_ENTERED: torch.zeros(4, 2)}
        >>> tokens = Tokens(torch.zeros(4, 2), signals=signals)
        >>> MustDropStage(0.1, 0.1).select(tokens).indices
        tensor([0, 2, 3])
    """

    global_thr: Share
    individual_thr: Share
    layer: Layer = LAYERS[0] + 1
    key_share: Share = 0.08
    needs = (DECODER_TEXT_ATTENTION, LAST_ATTENTION, TOWER_SIZE, DECODER_ENTERED)
    promises = EQUIVARIANT
    example = "mustdrop_stage(0.001, 0.001)"

    @property
    def place(self) -> InDecoder:
        """The layer; positions are renumbered."""
        return InDecoder(self.layer, positions="compact")

    def choose(self, tokens: Tokens) -> Choice:
        """Keep what some text token attends to, and what the CLS token does."""
        attention, tower = tokens[DECODER_TEXT_ATTENTION], tokens[LAST_ATTENTION]
        # Key tokens are never dropped, so the largest of what is left are those of the whole image.
        whole = tokens.original if tokens[TOWER_SIZE] is None else tokens[DECODER_ENTERED].shape[0]
        key = top(head_mean(tower), min(tokens.n, ceil(self.key_share * whole)))[0]
        kept = mustdrop_filter(
            attention[None], global_thr=self.global_thr, individual_thr=self.individual_thr, key_set=key
        )
        return Choice(kept, scores=as_given(exact_sum(attention, 0), attention))


@strategy("mustdrop", paper="MustDrop, arXiv 2411.10803")
class MustDrop(Staged):
    """Drop by two thresholds, in stages, what no text token attends to (MustDrop).

    Thresholds decide, so how many tokens are left differs from image to image. The most attended tokens of the vision
    tower never go. With `merge=True` windows of alike patches are merged in the tower first (`MustDropMerge`), as
    MustDrop does. It also cuts the caches of its first layers after the prompt: that is not done here.

    Definition, paper's code and deviations: `tokenprune.baselines.mustdrop`.

    Args:
        global_thr: share of all attention from the text below which a token may go.
        individual_thr: attention below which every text token must stay for it to go.
        layers: the first decoder layer with fewer tokens of each stage, ascending, counted from 0. None takes 3, 7, 11,
            15 (layers 2, 6, 10, 14 decide), or in a model of fewer than 32 layers those at that share of its depth.
        key_share: share of the image's original tokens, those of largest CLS attention, that never go; 0 for none.
            With `merge` it is a share of the tokens that enter the language model.
        merge: True to merge windows of alike patches behind the vision tower's first layer.
        window: for `merge`, side of a window in patches; must divide the raster.

    Examples:
        >>> MustDrop.published(64)
        mustdrop(global_thr=0.011, individual_thr=0.01)
        >>> MustDrop(0.011, 0.01, merge=True).stages[0]
        mustdrop_merge()
        >>> [stage.place.layer for stage in MustDrop(0.01, 0.01).at_depth(16).stages]
        [2, 4, 6, 8]
    """

    global_thr: Share
    individual_thr: Share
    layers: Layers | None = None
    key_share: Share = 0.08
    merge: bool = False
    window: int = 3
    example = "mustdrop(0.001, 0.001)"

    def __post_init__(self) -> None:
        check_window("MustDrop", self.window)

    @classmethod
    def published(cls, budget: int) -> "MustDrop":
        """Return the authors' thresholds for TextVQA, by the average of tokens that their method reaches there."""
        check_choice("MustDrop.published", "budget", str(budget), [str(known) for known in THRESHOLDS])
        return cls(*THRESHOLDS[budget])

    def at_depth(self, depth: int) -> "MustDrop":
        """Name the default layers."""
        return self if self.layers is not None else replace(self, layers=layers_at_depth(self._layers(), depth))

    def _layers(self) -> tuple[int, ...]:
        return self.layers if self.layers is not None else tuple(layer + 1 for layer in LAYERS)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per layer, and with `merge` that of the tower before them."""
        inside = tuple(
            MustDropStage(self.global_thr, self.individual_thr, layer=layer, key_share=self.key_share)
            for layer in self._layers()
        )
        return (MustDropMerge(window=self.window), *inside) if self.merge else inside
