"""Rows of a kernel in float64, computed some at a time: those that a greedy loop has picked or will soon pick."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.kernels import images as of_images
from tokenprune.kernels.similarity import gram
from tokenprune.kernels.ties import precise, unit64

_AT_ONCE = 24  # rows per matrix product: fewer would wait for the memory
_SHARE = 1 / 5  # of the rows; from about twice as many on, half of the whole matrix is sooner computed


def worth_it(n: int, keep: int) -> bool:
    """Whether fewer products are needed than for half of the matrix, if a good part of the guesses are right.

    Examples:
        >>> worth_it(576, 64), worth_it(100, 50)
        (True, False)
    """
    return keep <= n * _SHARE and n > 4 * _AT_ONCE


class RowsAhead:
    r"""Rows of $K_{ij} = w_i w_j \cos(x_i, x_j)$ for a loop that asks for the row of the token with the best score.

    Whoever has one of the best scores now is likely to be picked soon. So the rows of the best are computed together,
    which reads the tokens once for all of them.

    Args:
        x: (n, d), any floating dtype, on a CPU.
        weight: float64 (n,).

    Examples:
        >>> rows = RowsAhead(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([1.0, 2.0]).double())
        >>> rows(0, np.array([1.0, 0.5])).round(6).tolist()
        [1.0, 1.6]
    """

    def __init__(self, x: Float[Tensor, "n d"], weight: Float[Tensor, " n"]) -> None:
        if x.dtype == torch.float64:
            points, lengths = unit64(x), torch.ones_like(weight)
        else:  # the squares of narrower types are in range, and dividing n rows costs more than n factors
            points = precise(x).contiguous()
            lengths = torch.linalg.vector_norm(points, dim=1)
        self._points = points
        self._factor = weight / lengths.masked_fill(lengths == 0, 1.0)
        self.quality = weight.square() * points.any(1)
        """The diagonal."""
        self._known: dict[int, NDArray[np.floating[Any]]] = {}

    def __call__(self, index: int, scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Row `index`, whose token is picked by these scores."""
        if index not in self._known:
            self._compute(index, scores)
        return self._known[index]

    def _compute(self, index: int, scores: NDArray[np.floating[Any]]) -> None:
        chances = scores.copy()
        chances[list(self._known)] = -np.inf
        chances[index] = np.inf
        best = np.argpartition(chances, -min(_AT_ONCE, len(chances)))[-_AT_ONCE:]
        chosen = torch.from_numpy(best[chances[best] > -np.inf])
        rows = (self._points[chosen] @ self._points.mT).mul_(self._factor).mul_(self._factor[chosen, None])
        self._known.update(zip(chosen.tolist(), rows.numpy(), strict=True))


def weighted_determinant_each(
    images: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]], keeps: Sequence[int]
) -> list[Int[Tensor, " _"]]:
    """`determinant_each` for the cosines of the rows of each image, times the weights of row and column.

    Where few tokens are picked on a CPU, only the rows of some tokens are computed.

    Args:
        images: (n, d) features of any floating dtype and float64 (n,) weights.
        keeps: picks of each, 1 to n.

    Examples:
        >>> weighted_determinant_each([(torch.eye(3), torch.tensor([1.0, 3.0, 2.0]).double())], [2])
        [tensor([1, 2])]
    """
    few = [of_images.on_host(x, "auto") and worth_it(len(x), keep) for (x, _), keep in zip(images, keeps, strict=True)]
    kernels = (_kernel(x.detach(), weight) for (x, weight), ahead in zip(images, few, strict=True) if not ahead)
    whole = iter(of_images.determinant_each(kernels, [k for k, ahead in zip(keeps, few, strict=True) if not ahead]))
    orders = []
    for (x, weight), keep, ahead in zip(images, keeps, few, strict=True):
        if ahead:
            rows = RowsAhead(x.detach(), weight)
            orders.append(of_images.determinant_on_host(rows, keep, rows.quality))
        else:
            orders.append(next(whole))
    return orders


def _kernel(x: Float[Tensor, "n d"], weight: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    return gram(unit64(x)).mul_(weight[:, None]).mul_(weight)
