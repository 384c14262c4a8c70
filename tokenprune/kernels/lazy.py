"""Affinities of one image row by row, without the matrix: memory of the tokens alone, k matrix-vector products."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.kernels.direct import between, points_for
from tokenprune.kernels.similarity import FACTOR, DistanceName, finish, prepare, rounding, unit_rows, working_dtype
from tokenprune.kernels.ties import precise_dtype

_PANEL_ENTRIES = 1 << 22  # of a panel of rows where a start needs all pairs: 16 MiB in float32
_SUMMED = 64  # rows that are added up in their own precision


class LazyRows:
    """The rows of `affinity(x[None], distance)[0]`, each computed when it is asked for.

    Args:
        x: (n, d) features of any real dtype; held in working precision.
        distance: any but "precomputed".

    Examples:
        >>> LazyRows(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), "cosine").row(0)
        tensor([-1., -0.,  1.])
    """

    def __init__(self, x: Float[Tensor, "n d"], distance: DistanceName) -> None:
        self._distance = distance
        self._x = x
        dtype = working_dtype(x)
        self._points = unit_rows(x.to(dtype)) if distance == "cosine" else points_for(x, distance).to(dtype)

    @property
    def scale(self) -> Float[Tensor, "1 1"]:
        """The size of an entry."""
        if self._distance in ("cosine", "angular"):
            return self._points.new_ones((1, 1))
        middle = self._points.mean(0, keepdim=True)
        largest = 2 * torch.linalg.vector_norm(self._points - middle, dim=1).amax().reshape(1, 1)
        return largest.square() if self._distance == "sqeuclidean" else largest

    def row(self, index: int) -> Float[Tensor, " n"]:
        """Row `index`; its own entry is of no use."""
        return self._row(self._points[index])

    def rows(self, picks: Int[Tensor, " 1"]) -> Float[Tensor, "1 n"]:
        """The row of an index that is on the device."""
        return self._row(self._points[picks][0])[None]

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Some columns of some rows of cosines."""
        points = self._points
        product = points[torch.from_numpy(rows)] @ points[torch.from_numpy(columns)].mT
        return np.asarray(product.mul_(FACTOR["cosine"]).numpy())

    def _row(self, point: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        if self._distance == "cosine":
            return (self._points @ point).mul_(FACTOR["cosine"])
        return between(point[None], self._points, self._distance)[0]

    def reduce(self, kind: Literal["sum", "max", "min"]) -> Float[Tensor, " n"]:
        """Sum or largest of each row, or its smallest entry off the diagonal."""
        if kind == "sum" and self._distance == "cosine":
            points = self._points
            own = points.any(1).to(points.dtype)  # a row's product with itself
            return -(points @ self._total()) + own - 1
        return torch.cat([_REDUCE[kind](panel) for panel in self._panels(torch.inf if kind == "min" else 0.0)])

    def _total(self) -> Float[Tensor, " d"]:
        parts = [part.sum(0).to(precise_dtype(part.device)) for part in self._points.split(_SUMMED)]
        return torch.stack(parts).sum(0).to(self._points.dtype)

    def sum_rounding(self) -> float:
        """How far `reduce("sum")` may be from the truth for cosines.

        Each unit row is wrong by a little in proportion to itself, adding them up in parts by a little more, and the
        product with the total, which is at most n long, by that of one entry.
        """
        n, d = self._points.shape
        unit = torch.finfo(self._points.dtype).eps / 2
        return n * (2 * rounding(d, self._points.dtype, columns=d) + (_SUMMED + 4) * unit)

    def _panels(self, own_entry: float) -> Iterator[Float[Tensor, "r n"]]:
        """All rows, some at a time."""
        if self._distance == "cosine":
            points, norms = self._points, None
        else:
            points, norms = prepare(self._x.to(self._points.dtype), self._distance)
        step = max(1, _PANEL_ENTRIES // len(points))
        for top in range(0, len(points), step):
            panel = (points[top : top + step] @ points.mT).mul_(FACTOR[self._distance])
            own = panel if norms is None else norms[0, top : top + step, None]
            finish(panel, own, norms, self._distance)
            # The distance of a token to itself, but for the cosine, whose affinity is one less than the distance.
            panel.diagonal(offset=top).fill_(own_entry - (self._distance == "cosine"))
            yield panel


_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda panel: panel.sum(1),
    "max": lambda panel: panel.amax(1),
    "min": lambda panel: panel.amin(1),
}
