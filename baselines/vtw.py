r"""VTW: from one layer of the language model on, all visual tokens are withdrawn.

At layer K every image position leaves the sequence; the layers before keep it in their cache. Default K = 15 of 32.
The authors' search takes the first $K \ge 5$ for which the mean over a few samples of
$\mathrm{KL}(p_{\mathrm{full}} \,\Vert\, p_{\mathrm{withdrawn}(K)})$ of the last token's distribution is at most
$\eta$ (LLaVA-1.5-7B 0.003, 13B 0.0005, LLaVA-NeXT-7B 0.0001).

Paper: VTW, AAAI 2025 (arXiv 2405.05803). The rule is that of the authors' code at commit 34a41991; there is nothing
to select, hence no vectors. Positions stay the original ones by default; renumbering is an option of the program.

Deviations: KL in float32 from log-softmaxes; a search that finds no layer raises an error. Without a layer given the
strategy takes 15 of 32, and in a shallower model the layer at the same share of its depth. The program removes
positions 35 to 610, whatever is there; here every visual token of every image goes. The search on a model is
`tokenprune.evaluate.withdrawal.find_withdrawal_layer`.
"""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from tokenprune.baselines.layer_budget import layers_at_depth
from tokenprune.baselines.scoring import check_count, working
from tokenprune.core.fields import Layer, strategy
from tokenprune.core.places import InDecoder
from tokenprune.core.selection import Choice
from tokenprune.core.strategy import EQUIVARIANT, Stage
from tokenprune.core.tokens import Tokens

__all__ = ["DEFAULT_LAYER", "FIRST_LAYER", "VTW", "withdrawal_kl", "withdrawal_layer"]

DEFAULT_LAYER = 15
FIRST_LAYER = 5


def withdrawal_kl(full: Float[Tensor, "s v"], withdrawn: Float[Tensor, "s v"]) -> Float[Tensor, ""]:
    """Mean over samples of KL(softmax(full) || softmax(withdrawn)).

    Args:
        full: (samples, vocabulary), last token's logits of the untouched model.
        withdrawn: the same with the visual tokens withdrawn at some layer.

    Examples:
        >>> import torch
        >>> withdrawal_kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)
    """
    p, q = log_softmax(working(full), -1), log_softmax(working(withdrawn), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def withdrawal_layer(divergences: Sequence[float], eta: float, *, first: int = FIRST_LAYER) -> int:
    """The first layer at which withdrawal changes the answer little enough.

    Args:
        divergences: mean KL for withdrawal at layer `first`, `first` + 1, ...
        eta: the largest divergence that is accepted.
        first: layer of the first entry.

    Raises:
        ValueError: when no layer reaches eta; raise eta or withdraw nothing.

    Examples:
        >>> withdrawal_layer([0.2, 0.01, 0.002, 0.004], eta=0.003)
        7
    """
    check_count("withdrawal_layer", "first", first, 10_000, lowest=0)
    for layer, divergence in enumerate(divergences, start=first):
        if divergence <= eta:
            return layer
    lowest = min(divergences, default=float("nan"))
    raise ValueError(f"withdrawal_layer: no layer reaches eta={eta}; the lowest divergence is {lowest}")


@strategy("vtw", paper="VTW, AAAI 2025, arXiv 2405.05803")
class VTW(Stage):
    """Drop every visual token from one layer of the language model on (VTW, AAAI 2025).

    Nothing is chosen, so there is no budget: n tokens enter layers 0 .. `layer` - 1 and none the others. What the text
    took over from the image by then is what it has; the caches of the first layers keep the image.

    Definition, paper's code and deviations: `tokenprune.baselines.vtw`.

    Args:
        layer: the first decoder layer without visual tokens, counted from 0, at least 1. None takes 15, or in a model
            of fewer than 32 layers the layer at that share of its depth.

    Examples:
        >>> import torch
        >>> VTW(layer=3).select(Tokens(torch.zeros(9, 2))).kept, VTW().at_depth(4)
        (0, vtw(layer=2))
    """

    layer: Layer | None = None
    yields = "nothing"
    promises = EQUIVARIANT
    example = "vtw()"

    @property
    def place(self) -> InDecoder:
        """The layer; positions stay."""
        return InDecoder(DEFAULT_LAYER if self.layer is None else self.layer, positions="original")

    def at_depth(self, depth: int) -> "VTW":
        """Name the default layer."""
        return self if self.layer is not None else replace(self, layer=layers_at_depth((DEFAULT_LAYER,), depth)[0])

    def requested(self, tokens: Tokens) -> int | None:
        """Count none."""
        del tokens
        return 0

    def choose(self, tokens: Tokens) -> Choice:
        """Keep none."""
        return Choice(tokens.positions[:0])
