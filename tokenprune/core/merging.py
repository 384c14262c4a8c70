"""Stages that merge tokens between the layers of the vision tower, and the bookkeeping of what they merge."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.core.checks import Yields
from tokenprune.core.places import InTower
from tokenprune.core.selection import Choice
from tokenprune.core.signals import TOWER_SIZE, VISION_KEYS, WHOLE_IMAGE, Signal
from tokenprune.core.strategy import Stage
from tokenprune.core.tokens import Tokens
from tokenprune.kernels.ties import precise

_LAYERS = 24


class Merge(NamedTuple):
    """Which rows become one, in rows of the sequence given.

    Attributes:
        row_of: int64 (p,), for each row the row of the shorter sequence that it goes into.
        place: int64 (r,), for each row of the shorter sequence the old row whose place it takes.
    """

    row_of: Int[Tensor, " p"]
    place: Int[Tensor, " r"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TowerState:
    """One image's sequence in the tower. Immutable.

    Attributes:
        x: float (p, c), states.
        size: float (p,), tokens of the tower's input that each row stands for.
        place: int64 (p,), the one of them whose place it takes.
        grid: (rows, columns) of the image's patches before any merge, where it is known.
    """

    x: Float[Tensor, "p c"]
    size: Float[Tensor, " p"]
    place: Int[Tensor, " p"]
    grid: tuple[int, int] | None = None

    @classmethod
    def whole(cls, x: Float[Tensor, "p c"], grid: tuple[int, int] | None = None) -> "TowerState":
        """Before any merge."""
        size, place = torch.ones_like(x[:, 0], dtype=torch.float32), torch.arange(len(x), device=x.device)
        return cls(x=x, size=size, place=place, grid=grid)

    def merged(self, merge: Merge) -> "TowerState":
        """States averaged by size in float32 (float64 stays), sizes added; rows that stay alone keep their bits."""
        count = merge.place.shape[0]
        size = self.size.new_zeros(count).index_add(0, merge.row_of, self.size)
        x = self.x if self.x.dtype == torch.float64 else self.x.float()
        share = self.size.to(x.dtype) / size[merge.row_of].to(x.dtype)  # of each row in its mean; sums could overflow
        weighted = x * share[:, None]
        mean = weighted.new_zeros((count, self.x.shape[1])).index_add(0, merge.row_of, weighted)
        alone = size == self.size[merge.place]
        x = torch.where(alone[:, None], self.x[merge.place], mean.to(self.x.dtype))
        return TowerState(x=x, size=size, place=self.place[merge.place], grid=self.grid)


class Merging(Stage):
    """A stage that merges tokens between the layers of the vision tower.

    A subclass writes `merge`, which is called in every layer up to the one whose output the model uses. What comes out
    are merged tokens, each at the place of one patch of the image; `select` reads off which places those are, from
    `TOWER_SIZE`. So a pipeline may go on with other stages, and their signals are those of the merged tokens.

    Without a model, when `TOWER_SIZE` is not known, `select` merges the tokens themselves, as a tower of 24 layers
    would that change nothing: good for trying a strategy out, not the method.
    """

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The complete raster; the sizes where a model merged."""
        return (WHOLE_IMAGE, TOWER_SIZE)

    @property
    def place(self) -> InTower:
        """In the vision tower."""
        return InTower()

    @property
    def yields(self) -> Yields:
        """Merged tokens."""
        return "merged"

    @abstractmethod
    def merge(
        self,
        layer: int,
        layers: int,
        state: TowerState,
        keys: Float[Tensor, "p e"] | None,
        *,
        prefix: int,
        patches: int,
    ) -> Merge | None:
        """Decide what to merge in one layer, for one image; None for nothing.

        Args:
            layer: the layer, from 0.
            layers: number of layers in which merging is possible.
            state: the sequence at that point.
            keys: the layer's attention keys averaged over heads, in float32; None after the whole layer.
            prefix: leading rows that are no patches (a CLS token); they must stay first, each alone.
            patches: number of the image's patches before any merge.
        """

    def check_raster(self, patches: int, grid: tuple[int, int] | None) -> None:
        """Raise a ValueError when such images cannot be merged; asked before the first layer of a model's tower.

        Args:
            patches: number of an image's patches.
            grid: their (rows, columns), where it is known.
        """

    @final
    def choose(self, tokens: Tokens) -> Choice:
        """Read off what the tower merged, or merge here."""
        size, visual = tokens[TOWER_SIZE], tokens.visual
        if size is None:
            visual, size = self._merged(tokens)
        kept = (size[0] > 0).nonzero().flatten()  # (k,)
        return Choice(kept, features=visual[kept], sizes=size[0, kept])

    @final
    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Read the images off one by one."""
        return [self.choose(tokens) for tokens in batch]

    def _merged(self, tokens: Tokens) -> tuple[Float[Tensor, "n d"], Float[Tensor, "1 n"]]:
        """Merge as in a tower whose layers change nothing; `VISION_KEYS`, where known, are their keys."""
        # In float64, so that later merges compare the same numbers whatever the tokens' precision is.
        keys = TowerState.whole(precise(tokens[VISION_KEYS] if tokens.knows(VISION_KEYS) else tokens.visual))
        state = TowerState.whole(precise(tokens.visual), tokens.grid)
        for layer in range(_LAYERS):
            metric = keys.x.detach() if self.place.after == "attention" else None
            plain = replace(state, x=state.x.detach())
            merge = self.merge(layer, _LAYERS, plain, metric, prefix=0, patches=tokens.n)
            if merge is not None:
                state, keys = state.merged(merge), keys.merged(merge)
        visual = torch.zeros_like(state.x[:1]).repeat(tokens.n, 1).index_copy(0, state.place, state.x)  # (n, d)
        size = state.size.new_zeros(tokens.n).index_copy(0, state.place, state.size)  # (n,)
        return visual.to(tokens.visual.dtype), size[None]
