"""Ranking by score, ties to the lowest index."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k(scores: Float[Tensor, "*b n"], k: int) -> tuple[Int[Tensor, "*b k"], Int[Tensor, "*b k"]]:
    """The k largest of the last axis: (indices ascending, indices by falling score); ties go to the lowest index.

    Examples:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0]), 2)[1]
        tensor([1, 2])
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return order.sort(dim=-1).values, order


def top_each(
    scores: Sequence[Float[Tensor, " _"]], keeps: Sequence[int]
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """`top_k` for the scores of several images, side by side; what an image gets does not depend on the others.

    Args:
        scores: (n,) each, any n.
        keeps: how many of each, 1 to n.

    Examples:
        >>> top_each([torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0.0, 1.0])], [2, 1])
        [(tensor([1, 2]), tensor([1, 2])), (tensor([1]), tensor([1]))]
    """
    found: list[tuple[Tensor, Tensor] | None] = [None] * len(scores)
    groups: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for i, (score, keep) in enumerate(zip(scores, keeps, strict=True)):
        # One number of picks per group: what is cut off must not be sorted with the rest.
        groups.setdefault((keep, score.dtype, score.device), []).append(i)
    for (keep, *_), members in groups.items():
        # Minus infinity behind the scores: a stable sort leaves it behind every score of the image.
        alike = len({scores[i].shape for i in members}) == 1
        parts = [scores[i] for i in members]
        together = torch.stack(parts) if alike else torch.nn.utils.rnn.pad_sequence(parts, True, -torch.inf)
        for i, indices, order in zip(members, *top_k(together, keep), strict=True):
            found[i] = (indices, order)
    return [pair for pair in found if pair is not None]
