r"""VTW: from one layer of the language model on, all visual tokens are withdrawn.

At layer K every image position leaves the sequence; the layers before keep it in their cache. Default K = 15 of 32.
The authors' search takes the first $K \ge 5$ for which the mean over a few samples of
$\mathrm{KL}(p_{\mathrm{full}} \,\Vert\, p_{\mathrm{withdrawn}(K)})$ of the last token's distribution is at most
$\eta$ (LLaVA-1.5-7B 0.003, 13B 0.0005, LLaVA-NeXT-7B 0.0001).

Paper: VTW, AAAI 2025 (arXiv 2405.05803). The rule is that of the authors' code at commit 34a41991; there is nothing
to select, hence no vectors. Positions stay the original ones by default; renumbering is an option of the program.

Deviations: KL in float32 from log-softmaxes; a search that finds no layer raises an error.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from tokenprune.baselines.scoring import check_count, working

__all__ = ["DEFAULT_LAYER", "FIRST_LAYER", "withdrawal_kl", "withdrawal_layer"]

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
