"""Budgets per tile, for models that see an image in several tiles."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenprune.pipeline import StagedStrategy
from tokenprune.strategy import PruningStrategy, check_choice
from tokenprune.tokens import Selection, Tokens

NewlinePolicy = Literal["keep", "drop"]
_FACTS = ("needs", "site", "layer", "positions", "deterministic")
_KEY_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, repr=False)
class PerTile(PruningStrategy):
    """Let a strategy choose in every tile of an image on its own: a budget of 64 is 64 tokens of each tile.

    What authors of methods do with images in tiles differs. Per tile without newline tokens: VisionZip, FasterVLM,
    VisPruner, CDPruner. Over all tiles at once, newline tokens among the candidates: DivPrune, DART, PyramidDrop; for
    that use the strategy as it is. HiRED shares one budget among tiles by a rule of its own and keeps newline tokens.

    A share refers to the tokens of the tile. Newline tokens (`Tokens.tiles` -1) belong to no tile and do not count. An
    image without `Tokens.tiles` is one tile.

    Args:
        strategy: what chooses within a tile; not one that makes new tokens or needs a raster.
        newlines: "drop" them all, or "keep" them all.

    Examples:
        >>> from tokenprune import GreedyRepMax
        >>> tokens = Tokens(torch.eye(7), tiles=torch.tensor([0, 0, 0, 1, 1, 1, -1]))
        >>> PerTile(GreedyRepMax(keep=1)).select(tokens).indices
        tensor([0, 3])
        >>> PerTile(GreedyRepMax(keep=1), newlines="keep").select(tokens).indices
        tensor([0, 3, 6])
    """

    name: ClassVar[str] = "per_tile"
    summary: ClassVar[str] = "another strategy in every tile of the image on its own"
    whole_raster = True  # shares refer to complete tiles

    strategy: PruningStrategy
    _: KW_ONLY
    newlines: NewlinePolicy = "drop"

    def __post_init__(self) -> None:
        inner = self.strategy
        if not isinstance(inner, PruningStrategy):
            raise TypeError(
                f"PerTile: strategy must be a PruningStrategy, got {inner!r} of type {type(inner).__name__}"
            )
        check_choice("PerTile", "newlines", self.newlines, ("keep", "drop"))
        stages = inner.stages if isinstance(inner, StagedStrategy) else (inner,)
        away = next((stage for stage in stages if stage.site != "projector"), None)
        if away is not None:
            raise ValueError(
                f"PerTile: {away!r} acts at the {away.site}, where tiles are not told apart; put it behind"
            )
        for stage in stages:
            if stage.merges or stage.extends or not stage.ascending or "grid" in stage.needs:
                raise ValueError(
                    f"PerTile: {stage!r} makes or reorders tokens or needs their raster, which is not supported for "
                    "single tiles; choose a strategy that keeps tokens as they are"
                )
        for fact in _FACTS:
            object.__setattr__(self, fact, getattr(inner, fact))
        object.__setattr__(self, "uses", inner.uses | {"tiles", "key"})

    @classmethod
    def example(cls) -> "PerTile":
        """Half of each tile, by the alignment stage."""
        from tokenprune.alignment import MIAlignment

        return cls(MIAlignment(0.5))

    def requested(self, tokens: Tokens) -> int | None:
        """The sum over tiles, and the newline tokens when they are kept; None when the strategy has no budget."""
        rows, newlines = _split(tokens)
        counts = [
            None if (asked := self.strategy.requested(_tile(tokens, tile, place))) is None else min(asked, len(place))
            for tile, place in rows
        ]
        if None in counts:
            return None
        return sum(count or 0 for count in counts) + (len(newlines) if self.newlines == "keep" else 0)

    def _select(self, tokens: Tokens) -> Selection:
        return self._select_batch([tokens])[0]

    def _select_batch(self, batch: Sequence[Tokens]) -> list[Selection]:
        images = [_split(tokens) for tokens in batch]
        parts = [_tile(tokens, *place) for tokens, (tiles, _) in zip(batch, images, strict=True) for place in tiles]
        chosen = iter(self.strategy.select_batch(parts))
        selections = []
        for tokens, (tiles, newlines) in zip(batch, images, strict=True):
            kept = [rows[next(chosen).indices] for _, rows in tiles]
            if self.newlines == "keep":
                kept.append(newlines)
            selections.append(Selection(indices=torch.cat(kept).sort().values, total=tokens.n))
        return selections


def _split(tokens: Tokens) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Number and rows of every tile, and the rows of newline tokens."""
    everything = torch.arange(tokens.n, device=tokens.visual.device)
    if tokens.tiles is None:
        return [(0, everything)], everything[:0]
    numbers = sorted(set(tokens.tiles.tolist()) - {-1})
    tiles = [(number, (tokens.tiles == number).nonzero().flatten()) for number in numbers]
    return tiles, (tokens.tiles == -1).nonzero().flatten()


def _tile(tokens: Tokens, number: int, rows: Tensor) -> Tokens:
    """One tile as an image of its own; tile 0 has the key of the image, others keys of their own."""
    key = None if tokens.key is None else (tokens.key + number * _KEY_STEP + 2**63) % 2**64 - 2**63
    return replace(tokens._take(rows), index=None, total=None, grid=None, tiles=None, tile_grid=None, key=key)


__all__ = ["PerTile"]
