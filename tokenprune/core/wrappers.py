"""Strategies around another: in every tile, in pick order, at another layer."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from tokenprune.core.budget import Keep
from tokenprune.core.checks import Yields
from tokenprune.core.fields import Layer, strategy
from tokenprune.core.places import BeforeDecoder, InDecoder, Place, Positions, show_place
from tokenprune.core.selection import Choice
from tokenprune.core.signals import GRID, IMAGE_KEY, TILE_GRID, TILES, WHOLE_IMAGE, FromTower, Signal
from tokenprune.core.strategy import Promise, PruningStrategy, Stage
from tokenprune.core.tokens import Tokens

NewlinePolicy = Literal["keep", "drop"]
_KEY_STEP = 0x9E3779B97F4A7C15
_W = TypeVar("_W", bound="Wrapper")


class Wrapper(Stage):
    """A stage around another strategy; it acts where that one acts, and reads and promises what that one does."""

    @property
    @abstractmethod
    def inner(self) -> PruningStrategy:
        """The strategy inside."""

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Those of the inner strategy."""
        return self.inner.needs

    @property
    def place(self) -> Place:
        """That of the inner strategy's last stage."""
        return self.inner.place

    @property
    def yields(self) -> Yields:
        """What the inner stages leave together."""
        return self.inner.yields

    @property
    def promises(self) -> frozenset[Promise]:
        """What all inner stages promise."""
        return self.inner.promises

    def requested(self, tokens: Tokens) -> int | None:
        """Count what the inner strategy asks for."""
        return self.inner.requested(tokens)

    def at_depth(self: _W, depth: int) -> _W:
        """Return the same wrapper around the inner strategy as it runs in a model of `depth` layers."""
        placed = self.inner.at_depth(depth)
        return self if placed is self.inner else self._around(placed)

    def with_keep(self: _W, keep: Keep) -> _W:
        """Return the same wrapper with another budget: its own, or that of the inner strategy."""
        return super().with_keep(keep) if hasattr(self, "keep") else self._around(self.inner.with_keep(keep))

    def with_seed(self: _W, seed: int) -> _W:
        """Return the same wrapper around the inner strategy with another seed."""
        return self._around(self.inner.with_seed(seed))

    def _around(self: _W, inner: PruningStrategy) -> _W:
        name = next(name for name, value in vars(self).items() if value is self.inner)
        return self._with(name, inner, "nothing inside")


@strategy("per_tile")
class PerTile(Wrapper):
    """Let a strategy choose in every tile of an image on its own: a budget of 64 is 64 tokens of each tile.

    What authors of methods do with images in tiles differs. Per tile without newline tokens: VisionZip, FasterVLM,
    VisPruner, CDPruner. Over all tiles at once, newline tokens among the candidates: DivPrune, DART, PyramidDrop; for
    that use the strategy as it is. HiRED shares one budget among tiles by a rule of its own and keeps newline tokens.

    A share refers to the tokens of the tile. Newline tokens (-1 in `TILES`) belong to no tile and do not count. An
    image without `TILES` is one tile.

    Args:
        strategy: what chooses within a tile; not one that makes new tokens or needs a raster.
        newlines: "drop" them all, or "keep" them all.

    Examples:
        >>> from tokenprune import GreedyRepMax
        >>> tokens = Tokens(torch.eye(7), signals={TILES: torch.tensor([0, 0, 0, 1, 1, 1, -1])})
        >>> PerTile(GreedyRepMax(keep=1)).select(tokens).indices
        tensor([0, 3])
        >>> PerTile(GreedyRepMax(keep=1), newlines="keep").select(tokens).indices
        tensor([0, 3, 6])
    """

    example: ClassVar[str] = "per_tile(mi_alignment(keep=0.5))"

    strategy: PruningStrategy
    newlines: NewlinePolicy = "drop"

    def __post_init__(self) -> None:
        for stage in self.strategy.stages:
            if not isinstance(stage.place, BeforeDecoder):
                raise ValueError(
                    f"PerTile: {stage!r} acts {show_place(stage.place)}, where tiles are not told apart; put it after"
                )
            if stage.yields != "subset" or "ascending" not in stage.promises or GRID in stage.needs:
                raise ValueError(
                    f"PerTile: {stage!r} makes or reorders tokens or needs their raster, which is not supported for "
                    "single tiles; choose a strategy that keeps tokens as they are"
                )

    @property
    def inner(self) -> PruningStrategy:
        """What chooses within a tile."""
        return self.strategy

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Those of the strategy, and all tiles complete, since shares refer to them."""
        return tuple(dict.fromkeys((*self.strategy.needs, WHOLE_IMAGE, TILES, IMAGE_KEY)))

    @property
    def promises(self) -> frozenset[Promise]:
        """Those of the strategy; the order of the tokens matters, because tiles are in order."""
        return super().promises - {"equivariant"}

    def requested(self, tokens: Tokens) -> int | None:
        """Add up the tiles, and the newline tokens when they are kept; None when the strategy has no budget."""
        tiles, newlines = _split(tokens)
        total = len(newlines) if self.newlines == "keep" else 0
        for number, rows in tiles:
            requested = self.strategy.requested(_tile(tokens, number, rows))
            if requested is None:
                return None
            total += min(requested, len(rows))
        return total

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Let the strategy choose in all tiles of all images at once."""
        images = [_split(tokens) for tokens in batch]
        parts = [_tile(tokens, *place) for tokens, (tiles, _) in zip(batch, images, strict=True) for place in tiles]
        chosen = iter(self.strategy.select_batch(parts))
        choices = []
        for tiles, newlines in images:
            kept = [rows[next(chosen).indices] for _, rows in tiles]
            choices.append(Choice(torch.cat([*kept, newlines] if self.newlines == "keep" else kept).sort().values))
        return choices


def _split(tokens: Tokens) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Number and rows of every tile, and the rows of newline tokens."""
    everything, tiles = torch.arange(tokens.n, device=tokens.visual.device), tokens[TILES]
    if tiles is None:
        return [(0, everything)], everything[:0]
    numbers = sorted(set(tiles.tolist()) - {-1})
    return [(number, everything[tiles == number]) for number in numbers], everything[tiles == -1]


def _tile(tokens: Tokens, number: int, rows: Tensor) -> Tokens:
    """One tile as an image of its own; tile 0 has the key of the image, others keys of their own."""
    part = replace(tokens.take_sound(rows), index=None, total=None, grid=None)
    gone = dict.fromkeys((TILES, TILE_GRID))
    if not tokens.knows(IMAGE_KEY):
        return part.knowing(gone)
    return part.knowing({**gone, IMAGE_KEY: (tokens[IMAGE_KEY] + number * _KEY_STEP + 2**63) % 2**64 - 2**63})


@strategy("pick_order")
class PickOrder(Wrapper):
    """Keep what another strategy keeps, in its pick order instead of in raster order; for ablations.

    With original positions every token takes its position along; with compact ones the place in the order becomes its
    position.

    Args:
        strategy: a strategy that acts before the language model, makes no new tokens and has a pick order.

    Raises:
        ValueError: when it acts elsewhere or makes new tokens; while selecting, when it has no pick order.

    Examples:
        >>> from tokenprune import GreedyRepMax
        >>> tokens = Tokens(torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.2]]))
        >>> PickOrder(GreedyRepMax(keep=2)).select(tokens).indices
        tensor([2, 1])
    """

    example: ClassVar[str] = "pick_order(mi_alignment(keep=0.5))"

    strategy: PruningStrategy

    def __post_init__(self) -> None:
        if self.yields != "subset" or not isinstance(self.place, BeforeDecoder):
            raise ValueError(
                f"PickOrder: {self.strategy!r} acts inside the language model or makes new tokens, where there is no "
                "order to feed; choose one that keeps tokens as they are before it"
            )

    @property
    def inner(self) -> PruningStrategy:
        """What picks."""
        return self.strategy

    @property
    def promises(self) -> frozenset[Promise]:
        """Those of the strategy, but the tokens are in its order."""
        return super().promises - {"ascending"}

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Put each image's kept rows in pick order."""
        return [self._ordered(selection) for selection in self.strategy.select_batch(batch)]

    def _ordered(self, choice: Choice) -> Choice:
        if choice.order is None:
            raise ValueError(f"PickOrder: {self.strategy!r} picks all tokens at once; choose one that picks one by one")
        return replace(choice, indices=choice.order)

    def __repr__(self) -> str:
        return f"pick_order({self.strategy!r})"


@strategy("at_layer")
class AtLayer(Wrapper):
    """Let a strategy that acts before the language model act inside it, at a decoder layer.

    It chooses among the tokens that are left there by what it reads: their vectors are those that entered the language
    model.

    Args:
        strategy: a single stage that keeps a subset and reads nothing in the vision tower.
        layer: the first decoder layer with fewer tokens, counted from 0, at least 1.
        positions: "original" or "compact".

    Examples:
        >>> from tokenprune import GreedyRepMax
        >>> GreedyRepMax(keep=64).at(layer=8)
        at_layer(strategy=greedy_repmax(keep=64), layer=8)
    """

    example: ClassVar[str] = "at_layer(mi_alignment(keep=0.5), layer=8)"

    strategy: PruningStrategy
    layer: Layer
    positions: Positions = "original"

    def __post_init__(self) -> None:
        tower = [signal for signal in self.strategy.needs if isinstance(signal.source, FromTower)]
        elsewhere = not isinstance(self.strategy.stages[-1].place, BeforeDecoder)
        if len(self.strategy.stages) > 1 or self.yields != "subset" or elsewhere or tower:
            why = f"reads {tower[0]} in the vision tower" if tower else "is no single stage before the decoder"
            raise ValueError(
                f"AtLayer: {self.strategy!r} {why}, or makes new tokens; choose a stage that keeps a subset by what "
                "enters the language model"
            )

    @property
    def inner(self) -> PruningStrategy:
        """What chooses."""
        return self.strategy

    @property
    def place(self) -> InDecoder:
        """The layer."""
        return InDecoder(self.layer, self.positions)

    def choose_batch(self, batch: Sequence[Tokens]) -> list[Choice]:
        """Let the strategy choose."""
        return list(self.strategy.select_batch(batch))
