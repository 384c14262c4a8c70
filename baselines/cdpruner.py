r"""CDPruner: a determinantal point process conditioned on the prompt.

Relevance $r_i = -\operatorname{mean}_s \cos(e_i, t_s)$ of CLIP patch and text embeddings, carried to $(r - \min r +
10^{-6}) / (\max r - \min r)$; kernel $L = \operatorname{diag}(r)\, S\, \operatorname{diag}(r)$ with $S$ the cosine
matrix of the projected tokens; the kept set maximises $\det L_S$ greedily (incremental Cholesky). The sign is the
authors': the patches that CLIP finds *least* similar to the prompt are the relevant ones.

Paper: CDPruner, NeurIPS 2025 (arXiv 2506.10967). Checked against Theia-4869/CDPruner, commit
9541616c40fcd5625de1cdb8ea6c33c129eb7864.

Defects of the authors' program, reproduced by `official=True`:
- Minimum and maximum run over all tiles of the batch, so what one tile keeps depends on the others. Default: each
  tile on its own.
- Constant relevance divides by zero, and two tokens are kept. Default: relevance 1 for all, diversity alone
  decides.
- Beyond the kernel's rank, residuals are rounding noise and tokens repeat, so fewer come out. Default: a token
  whose residual is below 1e-6 of its own quality counts as dependent; dependent tokens follow by falling relevance.

Deviations: cosines in float64 (the program normalises in the model's dtype first). Text segments of more than 77
tokens and their pooling are the business of whoever computes `text_embeds`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.baselines.scoring import TIED, as_given, check_count, unit, unit64
from tokenprune.core.budget import Keep, keep_count
from tokenprune.core.fields import strategy
from tokenprune.core.selection import Choice
from tokenprune.core.signals import CLIP_TEXT, CLIP_VISUAL
from tokenprune.core.strategy import EQUIVARIANT, PLAIN, Promise, Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels import determinant_each
from tokenprune.kernels.ahead import weighted_determinant_each

__all__ = ["CDPruner", "cdpruner", "cdpruner_relevance", "greedy_map"]


def cdpruner_relevance(
    image_embeds: Float[Tensor, "t n c"], text_embeds: Float[Tensor, "s c"], *, official: bool = False
) -> Float[Tensor, "t n"]:
    """Relevance of each patch to the prompt, scaled to about [0, 1]; larger is more relevant.

    Args:
        image_embeds: (tiles, n, c), CLIP patch states after the final layer norm and the visual projection.
        text_embeds: (segments, c), CLIP text embeddings.
        official: scale over all tiles together, and let a constant relevance become infinite.

    Examples:
        >>> patches = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
        >>> cdpruner_relevance(patches, torch.tensor([[2.0, 0.0]]))
        tensor([[5.0000e-07, 5.0000e-01, 1.0000e+00]])
    """
    if not official:
        return as_given(_relevance(image_embeds, text_embeds), image_embeds)
    return _scaled(-(unit(image_embeds) @ unit(text_embeds).T).mean(-1), official=True)


def _relevance(image_embeds: Float[Tensor, "t n c"], text_embeds: Float[Tensor, "s c"]) -> Float[Tensor, "t n"]:
    return _scaled(-(unit64(image_embeds) @ unit64(text_embeds).mean(0)), official=False)


def _scaled(relevance: Float[Tensor, "t n"], *, official: bool) -> Float[Tensor, "t n"]:
    axes = (0, 1) if official else (1,)
    low, high = relevance.amin(axes, keepdim=True), relevance.amax(axes, keepdim=True)
    scaled = (relevance - low + 1e-6) / (high - low)
    if official:
        return scaled
    return torch.where(high > low + TIED, scaled, torch.ones_like(scaled))


def greedy_map(kernel: Float[Tensor, "t n n"], keep: int, *, official: bool = False) -> Int[Tensor, "t k"]:
    """Greedy maximisation of a determinant by incremental Cholesky factors: O(n keep^2) per tile.

    Args:
        kernel: (tiles, n, n), positive semidefinite.
        keep: number of picks per tile, 1 to n.
        official: without the guard against exhausted rank; indices may then repeat.

    Returns:
        int64 (tiles, keep), in pick order; ties to the lowest index.

    Examples:
        >>> greedy_map(torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.1, 0.0], [0.0, 0.0, 0.5]]]), 2)
        tensor([[1, 2]])
    """
    tiles, n, _ = kernel.shape
    check_count("greedy_map", "keep", keep, n)
    if not official:
        return torch.stack(determinant_each(kernel, [keep] * tiles))
    residual = kernel.diagonal(dim1=1, dim2=2)
    factors = kernel.new_zeros((keep, tiles, n))
    picks = torch.empty((tiles, keep), dtype=torch.int64, device=kernel.device)
    lane = torch.arange(tiles, device=kernel.device)
    for step in range(keep):
        pick = residual.argmax(1)
        picks[:, step] = pick
        known = factors[:step]
        row = kernel[lane, pick] - torch.einsum("kt,ktn->tn", known[:, lane, pick], known)
        row = row / residual[lane, pick].sqrt()[:, None]
        residual = residual - row.square()
        residual[lane, pick] = -torch.inf
        factors[step] = row
    return picks


def conditional_kernel(
    features: Float[Tensor, "n d"], embeds: Float[Tensor, "n c"], text: Float[Tensor, "s c"]
) -> Float[Tensor, "n n"]:
    """Make the kernel of one tile: cosines of the tokens, each row and column times the token's relevance.

    Args:
        features: (n, d), projector output.
        embeds: (n, c), CLIP patch states after the final layer norm and the visual projection.
        text: (segments, c), CLIP text embeddings of the prompt.

    Returns:
        (n, n), computed in float64, in the dtype of the features.

    Examples:
        >>> conditional_kernel(torch.eye(2), torch.eye(2), torch.tensor([[0.0, 1.0]])).diagonal().round(decimals=3)
        tensor([1., 0.])
    """
    relevance = _relevance(embeds[None], text)[0]  # (n,)
    rows = unit64(features)
    return as_given((rows @ rows.T) * relevance[:, None] * relevance, features)


def cdpruner(
    image_features: Float[Tensor, "t n d"],
    image_embeds: Float[Tensor, "t n c"],
    text_embeds: Float[Tensor, "s c"],
    keep: int,
    *,
    official: bool = False,
) -> Int[Tensor, "t k"]:
    """Conditional determinantal selection, `keep` tokens from each tile.

    Args:
        image_features: (tiles, n, d), projector output.
        image_embeds: (tiles, n, c), CLIP patch states after the final layer norm and the visual projection.
        text_embeds: (segments, c), CLIP text embeddings of the prompt.
        keep: number of picks per tile, 1 to n.
        official: reproduce the authors' program (see the file's docstring).

    Returns:
        int64 (tiles, keep), in pick order.

    Examples:
        >>> x = torch.eye(3)[None]
        >>> cdpruner(x, torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]), torch.tensor([[1.0, 0.0]]), 2)
        tensor([[2, 1]])
    """
    if not official:
        check_count("cdpruner", "keep", keep, image_features.shape[1])
        tiles = list(zip(image_features, _relevance(image_embeds, text_embeds), strict=True))
        return torch.stack(weighted_determinant_each(tiles, [keep] * len(tiles)))
    relevance = cdpruner_relevance(image_embeds, text_embeds, official=True)
    rows = unit(image_features)
    kernel = relevance[:, :, None] * (rows @ rows.transpose(1, 2)) * relevance[:, None, :]
    return greedy_map(kernel, keep, official=True)


@strategy("cdpruner", paper="CDPruner, NeurIPS 2025, arXiv 2506.10967")
class CDPruner(Stage):
    """Keep tokens that differ from one another and matter to the prompt: conditional DPP (CDPruner, NeurIPS 2025).

    Definition, paper's code and deviations: `tokenprune.baselines.cdpruner`. Needs CLIP's joint space: the embeddings
    of the patches and of the prompt. The prompt is the question alone in
    the authors' program.

    Args:
        keep: tokens (int) or share of the image's original tokens (float).
        official: reproduce the authors' program where relevance is constant or the kernel's rank is below the budget;
            fewer than `keep` tokens may come out.

    Examples:
        >>> clip = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> tokens = Tokens(torch.eye(3), signals={CLIP_VISUAL: clip, CLIP_TEXT: clip[:1]})
        >>> CDPruner(keep=2).select(tokens).indices
        tensor([1, 2])
    """

    keep: Keep
    official: bool = False
    needs = (CLIP_VISUAL, CLIP_TEXT)

    @property
    def promises(self) -> frozenset[Promise]:
        """What rounding noise decides with `official` does not follow a permutation."""
        return PLAIN if self.official else EQUIVARIANT

    def requested(self, tokens: Tokens) -> int | None:
        """Count the budget; None with `official`, which may repeat tokens and so keep fewer."""
        return None if self.official else super().requested(tokens)

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Pick greedily by the largest determinant."""
        keeps = [min(keep_count(self.keep, tokens.original), tokens.n) for tokens in batch]
        signals = [(tokens.visual, tokens[CLIP_VISUAL], tokens[CLIP_TEXT]) for tokens in batch]
        if self.official:
            orders = [
                cdpruner(visual[None], embeds[None], text, keep, official=True)[0]
                for (visual, embeds, text), keep in zip(signals, keeps, strict=True)
            ]
        else:
            tiles = [(visual, _relevance(embeds[None], text)[0]) for visual, embeds, text in signals]
            orders = weighted_determinant_each(tiles, keeps)
        return [Choice(order.unique()) if self.official else Choice.picked(order) for order in orders]
