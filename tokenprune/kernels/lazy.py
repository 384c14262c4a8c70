"""Affinities of one image row by row, without the matrix: memory of the tokens alone, k matrix-vector products."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.kernels.similarity import FACTOR, DistanceName, finish, prepare, working_dtype

_PANEL_ENTRIES = 1 << 22  # of a panel of rows where a start needs all pairs: 16 MiB in float32
_ALIGNED = 16  # rows: beyond a multiple of it, matrix-vector products on CPUs sum in another order


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
        self._points, self._norms = prepare(x.to(working_dtype(x)), distance)

    def row(self, index: int) -> Float[Tensor, " n"]:
        """Row `index`; its own entry is of no use."""
        return self._row(self._points[index], None if self._norms is None else self._norms[:, index : index + 1])

    def rows(self, picks: Int[Tensor, " 1"]) -> Float[Tensor, "1 n"]:
        """The row of an index that is on the device."""
        own = None if self._norms is None else self._norms[:, picks]
        return self._row(self._points[picks][0], own)[None]

    def _row(self, point: Float[Tensor, " d"], own: Float[Tensor, "1 1"] | None) -> Float[Tensor, " n"]:
        row = self._times(point).mul_(FACTOR[self._distance])[None]
        finish(row, row if own is None else own, self._norms, self._distance)
        return row[0]

    def _times(self, point: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        points, n = self._points, len(self._points)
        even = n - n % _ALIGNED
        if even == n:
            return points @ point
        if even == 0:
            return (points * point).sum(1)
        # The rest with the rows before it, so that equal rows have equal products wherever they stand.
        return torch.cat([points[:even] @ point, (points[n - _ALIGNED :] @ point)[even - n :]])

    def reduce(self, kind: Literal["sum", "max", "min"]) -> Float[Tensor, " n"]:
        """Sum or largest of each row, or its smallest entry off the diagonal."""
        points, norms = self._points, self._norms
        if kind == "sum" and self._distance == "cosine":
            return -self._times(points.sum(0)) + points.square().sum(1) - 1
        if kind == "sum" and self._distance == "sqeuclidean" and norms is not None:
            return len(points) * norms[0] + norms.sum() - 2 * self._times(points.sum(0))
        return torch.cat([_REDUCE[kind](panel) for panel in self._panels(torch.inf if kind == "min" else 0.0)])

    def _panels(self, own_entry: float) -> Iterator[Float[Tensor, "r n"]]:
        """All rows, some at a time."""
        points, norms = self._points, self._norms
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
