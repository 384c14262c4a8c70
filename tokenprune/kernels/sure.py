"""Ranking by scores in float32 whose rounding is bounded: only what the bound leaves open is scored in float64."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.kernels.rank import ranking
from tokenprune.kernels.ties import TIED

_BLOCK_ENTRIES = 1 << 17  # of a block of rows, which stays in the cache
_UNIT = 2.0**-24  # rounding of one operation in float32
_SUMMED = 64  # squares that are summed in float32
_NORM = _SUMMED + 8  # roundings in a squared length, relative to it
_UNDERFLOW = 1e-30

Scores = NDArray[np.float64]


def rough_distances(
    x: Float[Tensor, "n d"], centre: Float[Tensor, " d"], scale: Float[Tensor, ""]
) -> tuple[Scores, Scores]:
    r"""$\lVert s\,x_i - c\rVert^2$ from differences in float32, and how far each may be from the truth.

    Args:
        x: (n, d), float32 or narrower, on a CPU.
        centre: (d,), float64.
        scale: a power of two that brings x to at most 1.

    Examples:
        >>> rough_distances(torch.tensor([[3.0, 4.0]]), torch.zeros(2).double(), torch.tensor(0.25))[0]
        array([1.5625])
    """
    n, d = x.shape
    away_from, factor = centre.float().neg_(), scale.float()
    rows, parts = max(1, min(n, _BLOCK_ENTRIES // max(1, d))), -(-d // _SUMMED)
    buffer = torch.zeros((rows, parts * _SUMMED))  # zeros behind the d-th column stay
    lengths_of_parts = torch.empty((n, parts))
    for top in range(0, n, rows):
        block, found = x[top : top + rows], lengths_of_parts[top : top + rows]
        difference = buffer[: len(block)]
        torch.addcmul(away_from, block.float(), factor, out=difference[:, :d])
        torch.linalg.vector_norm(difference.unflatten(1, (parts, _SUMMED)), dim=-1, out=found)
    squares = lengths_of_parts.double().square_().sum(1).numpy()
    lengths, away = np.sqrt(squares), float(torch.linalg.vector_norm(centre))
    # Each difference is wrong by its own rounding and that of the centre.
    bound = 1.1 * _UNIT * (_NORM * squares + 2 * lengths * (lengths + away) + _UNIT * away**2)
    return squares, bound + d * _UNDERFLOW * (1 + lengths + away)


def sure_order(
    rough: Scores, bound: Scores, keep: int, exact: Callable[[NDArray[np.int64]], Scores]
) -> Int[Tensor, " k"] | None:
    """The first `keep` of `rank.ranking` by scores of which some are computed; None if those were half of them or more.

    Scores that follow one another within `TIED` of the largest absolute score are ties.

    Args:
        rough: (n,), scores that are wrong by at most `bound`; those that are computed are replaced by the exact ones.
        bound: (n,).
        keep: 1 to n.
        exact: the scores of some tokens in float64.

    Examples:
        >>> rough, true = np.array([1.0, 2.0, 2.1, 5.0, 0, 0, 0]), np.array([1.0, 2.1, 2.0, 5.0, 0, 0, 0])
        >>> sure_order(rough, np.full(7, 0.1), 2, true.__getitem__)
        tensor([3, 1])
    """
    sizes = np.abs(rough)
    wide = 1.01 * TIED * float((sizes + bound).max())
    order = np.argsort(-rough, kind="stable")
    low = np.minimum.accumulate((rough - bound)[order])
    high = np.maximum.accumulate((rough + bound)[order][::-1])[::-1]
    # After these places whatever follows is smaller, and by more than a tie.
    cuts = np.append(np.flatnonzero(low[:-1] - high[1:] > wide) + 1, len(rough))
    cuts = cuts[: np.searchsorted(cuts, keep) + 1]
    lengths = np.diff(cuts, prepend=0)
    several = np.repeat(lengths > 1, lengths)
    open_ = order[: cuts[-1]][several]
    largest = np.flatnonzero(sizes + bound >= (sizes - bound).max())  # one of them sets the size of a tie
    wanted = np.union1d(open_, largest)
    if 2 * len(wanted) >= len(rough):
        return None
    rough[wanted] = exact(wanted)
    slack = TIED * float(np.abs(rough[largest]).max())
    first = np.sort(order[: cuts[-1]])
    return torch.from_numpy(first[ranking(torch.from_numpy(rough[first]), slack)[:keep].numpy()])
