"""What decides between tokens that float32 cannot tell apart: their scores in float64, from the tokens themselves.

A token's own numbers go through elementwise operations and NumPy's sums along rows, whose order depends on the row's
length alone: it is the same on every processor, for any number of threads and wherever a row lies in memory. Equal rows
therefore have equal scores to the last bit.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.kernels.ties import TIED

Indices: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = NDArray[np.float64]
Entries: TypeAlias = Callable[[Indices, Indices], NDArray[np.floating[Any]]]
"""Of two lists of tokens the block of the float32 matrix."""

_FEW = 4  # rows that are sooner scored than looked for among each other
_BLOCK_ENTRIES = 1 << 16  # in float64 at once: they stay in the cache


class TooManyError(Exception):
    """So many tokens are close to one another that the whole image is sooner done in float64."""


class UnitRows:
    """The rows of one image scaled to length 1, in float64.

    Args:
        image: (n, d), any floating dtype but float64, whose squares might be out of range, on a CPU.

    Examples:
        >>> UnitRows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).along(np.array([1, 0]), np.array([10.0, 0.0]))
        array([0., 6.])
    """

    def __init__(self, image: Float[Tensor, "n d"]) -> None:
        self._image = image
        self._class: Indices | None = None
        self._seen: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._image)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self._image.shape[1]

    @cached_property
    def _numbers(self) -> NDArray[np.floating[Any]] | None:
        return None if self._image.dtype == torch.bfloat16 else self._image.numpy()

    def _given(self, indices: Indices) -> Rows:
        if self._numbers is not None:
            return np.asarray(self._numbers[indices].astype(np.float64))
        return np.asarray(self._image[torch.from_numpy(indices)].double().numpy())

    def is_zero(self, indices: Indices) -> NDArray[np.bool_]:
        """Which of these rows are zero."""
        return np.asarray(~self._given(indices).any(axis=1))

    def products(self, left: Indices, right: Indices) -> Rows:
        """Cosines of left[0] and right[0], left[1] and right[1], and so on."""
        found, step = np.empty(len(left)), max(1, _BLOCK_ENTRIES // self._image.shape[1])
        for top in range(0, len(left), step):
            part = slice(top, top + step)
            a, b = self._given(left[part]), self._given(right[part])
            found[part] = np.add.reduce(a * b, axis=1) / (_lengths(a) * _lengths(b))
        return found

    def along(self, indices: Indices, direction: Rows) -> Rows:
        """Products of these rows with one vector."""
        found, step = np.empty(len(indices)), max(1, _BLOCK_ENTRIES // self._image.shape[1])
        for top in range(0, len(indices), step):
            rows = self._given(indices[top : top + step])
            found[top : top + step] = np.add.reduce(rows * direction, axis=1) / _lengths(rows)
        return found

    def add_to(self, total: Rows, indices: Indices) -> None:
        """Add these rows to a vector, a few at a time.

        The vector is the same for all tokens that are compared, and its rounding hundreds of times less than a tie.
        """
        step = max(1, _BLOCK_ENTRIES // self._image.shape[1])
        for top in range(0, len(indices), step):
            rows = self._given(indices[top : top + step])
            squares = np.matmul(rows[:, None, :], rows[:, :, None])[:, 0, 0]  # faster than sums in a fixed order
            squares[squares == 0] = 1.0
            total += (1.0 / np.sqrt(squares)) @ rows

    def classes(self, indices: Indices) -> Indices:
        """A number for each row that equal rows share; -0.0 equals 0.0."""
        if self._class is None:
            self._class = np.full(len(self), -1, dtype=np.int64)
        new = indices[self._class[indices] < 0]
        if len(new):
            numbers = (self._image[torch.from_numpy(new)] + 0.0).contiguous().view(torch.uint8).numpy()
            for index, row in zip(new.tolist(), numbers, strict=True):
                self._class[index] = self._seen.setdefault(row.tobytes(), index)
        return np.asarray(self._class[indices])

    def lowest_of_equals(self, indices: Indices) -> Indices:
        """Of ascending indices those that are the first of their equals."""
        if len(indices) <= _FEW:
            return indices
        return indices[np.sort(np.unique(self.classes(indices), return_index=True)[1])]


def _lengths(rows: Rows) -> Rows:
    """Of rows; 1 for a zero row."""
    lengths = np.sqrt(np.add.reduce(rows * rows, axis=1))
    lengths[lengths == 0] = 1.0
    return np.asarray(lengths)


class Decider:
    """Chooses among tokens of one image that may come next; greedy on minus the cosine.

    Args:
        image: (n, d), any floating dtype but float64, on a CPU.
        objective: "sum" or "min".
        entries: the float32 matrix, or what would be in it.
        error: how far its entries may be from the truth.
        budget: how many rows may be scored before `TooManyError` is raised; None for any number.
    """

    def __init__(
        self,
        image: Float[Tensor, "n d"],
        objective: Literal["sum", "min"],
        entries: Entries,
        error: float,
        budget: int | None = None,
    ) -> None:
        self._unit, self._objective, self._entries, self._error = UnitRows(image), objective, entries, error
        self._left = budget
        self._summed = 0

    def __call__(self, picked: Indices, candidates: Indices) -> int:
        """The lowest index of those with the best score; see `host.Rule`."""
        candidates = self._unit.lowest_of_equals(candidates)
        if len(candidates) == 1:
            return int(candidates[0])
        if self._objective == "sum":
            self._spend(len(candidates))
            scores, slack = -self._unit.along(candidates, self._sum_of(picked)), TIED * len(picked)
        else:
            scores, slack = self._nearest(candidates, picked), TIED
        return int(candidates[(scores >= scores.max() - slack).argmax()])

    def _nearest(self, candidates: Indices, picked: Indices) -> Rows:
        if len(candidates) <= _FEW:
            return self._extreme(candidates, picked, np.minimum)
        # The nearest of those picked is an equal row, where there is one; but zero rows have no direction in common.
        found = np.full(len(candidates), -1.0)
        alone = ~np.isin(self._unit.classes(candidates), self._unit.classes(picked))
        alone |= self._unit.is_zero(candidates)
        if alone.any():
            found[alone] = self._extreme(candidates[alone], picked, np.minimum)
        return found

    @cached_property
    def _total(self) -> Rows:
        return np.zeros(self._unit.width)

    def _spend(self, rows: int) -> None:
        if self._left is not None:
            self._left -= rows
            if self._left < 0:
                raise TooManyError

    def _sum_of(self, picked: Indices) -> Rows:
        # One after the other, so that the sum does not depend on which steps were looked at before.
        self._unit.add_to(self._total, picked[self._summed :])
        self._summed = len(picked)
        return self._total

    def _extreme(self, rows: Indices, columns: Indices, extreme: np.ufunc, *, own: float | None = None) -> Rows:
        """Smallest or largest entry of each row, `own` in place of a token's entry with itself."""
        block = np.array(self._entries(rows, columns), dtype=np.float64)
        if own is not None:
            block[rows[:, None] == columns[None]] = own
        far = extreme.reduce(block, axis=1, keepdims=True)
        row, column = np.nonzero(np.abs(block - far) <= 2 * self._error)
        self._spend(len(row))
        found = np.full(len(rows), np.inf if extreme is np.minimum else -np.inf)
        extreme.at(found, row, -self._unit.products(rows[row], columns[column]))
        return found

    def first(self, candidates: Indices, start: Literal["sum", "max", "min"]) -> int:
        """The first pick among tokens whose row has the largest sum, largest entry or smallest entry."""
        candidates = self._unit.lowest_of_equals(candidates)
        if len(candidates) == 1:
            return int(candidates[0])
        every, slack = np.arange(len(self._unit)), TIED
        if start == "sum":
            self._spend(len(candidates))
            # The sum holds a row's product with itself, 1, or 0 for a zero row, whose entry with itself is -1 too.
            total = np.zeros(self._unit.width)
            self._unit.add_to(total, every)
            scores = ~self._unit.is_zero(candidates) - self._unit.along(candidates, total)
            slack = TIED * len(every)
        elif start == "max":
            scores = self._extreme(candidates, every, np.maximum, own=-np.inf)
        else:
            scores = self._extreme(candidates, every, np.minimum, own=np.inf)
        return int(candidates[(scores >= scores.max() - slack).argmax()])
