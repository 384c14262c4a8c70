"""Budgets per tile: each tile is chosen from as if it were an image of its own."""

import pytest
import torch

from tests.models.family_oracle import tiny
from tokenprune import Choice, GreedyRepMax, PruningStrategy, Stage, Tokens, parse, prune
from tokenprune.baselines import FastV, GridPool, Random, UniformGrid
from tokenprune.core.signals import TILE_GRID, TILES
from tokenprune.core.wrappers import PerTile
from tokenprune.testing import check_strategy, random_tokens


def image(*sizes: int, newlines: int = 3, seed: int = 0) -> Tokens:
    """Tiles of these sizes, their tokens mixed, with newline tokens among them."""
    number = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)] + [torch.full((newlines,), -1)])
    number = number[torch.randperm(len(number), generator=torch.Generator().manual_seed(seed))]
    return random_tokens(1, len(number), seed=seed).knowing({TILES: number})


@pytest.mark.parametrize("keep", [3, 0.4])
@pytest.mark.parametrize("newlines", ["keep", "drop"])
def test_every_tile_is_an_image_of_its_own(keep: float, newlines: str) -> None:
    tokens = image(9, 4, 12)
    strategy = PerTile(GreedyRepMax(keep), newlines=newlines)  # type: ignore[arg-type]
    assert tokens.tiles is not None
    expected = (tokens.tiles == -1).nonzero().flatten().tolist() if newlines == "keep" else []
    for number in range(3):
        rows = (tokens.tiles == number).nonzero().flatten()
        alone = Tokens(tokens.visual[rows])
        expected += rows[GreedyRepMax(keep).select(alone).indices].tolist()
    selection = strategy.select(tokens)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.requested == len(expected)


def test_an_image_without_tiles_is_one() -> None:
    tokens = random_tokens(seed=3)
    whole = tokens.knowing({TILES: None, TILE_GRID: None})
    for strategy in (GreedyRepMax(5), Random(0.3, seed=2)):
        assert PerTile(strategy).select(whole).indices.tolist() == strategy.select(whole).indices.tolist()


def test_random_draws_differ_between_tiles() -> None:
    tokens = image(20, 20, newlines=0).knowing({TILES: torch.arange(40) // 20})
    kept = PerTile(Random(8)).select(tokens).indices
    assert kept[:8].tolist() != (kept[8:] - 20).tolist()


def test_it_keeps_the_contract_and_its_text() -> None:
    strategy = PerTile(GreedyRepMax(keep=4), newlines="keep")
    check_strategy(strategy)
    assert repr(strategy) == "per_tile(strategy=greedy_repmax(keep=4), newlines='keep')"
    assert parse(repr(strategy)) == strategy


@pytest.mark.parametrize("inner", [GridPool(4), UniformGrid(4)])
def test_strategies_that_need_a_raster_are_refused(inner: PruningStrategy) -> None:
    with pytest.raises(ValueError, match="makes or reorders tokens or needs their raster"):
        PerTile(inner)


def test_other_places_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="acts at decoder layer 2, where tiles are not told apart"):
        PerTile(FastV(4))
    with pytest.raises(ValueError, match="newlines must be one of 'keep', 'drop', got 'candidates'"):
        PerTile(GreedyRepMax(4), newlines="candidates")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strategy must be a PruningStrategy, got 4 of type int"):
        PerTile(4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs the complete raster of tokens; put it first"):
        GreedyRepMax(9) >> PerTile(GreedyRepMax(4))


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_vl"])
def test_on_models(family: str) -> None:
    model, make_inputs = tiny(family)
    inputs = make_inputs(["look at <1> and <3> now", "then <0>"])
    with prune(model, "per_tile(greedy_repmax(keep=5))") as drop:
        model.generate(**inputs, max_new_tokens=2)
    with prune(model, "per_tile(greedy_repmax(keep=5), newlines='keep')") as keep:
        model.generate(**inputs, max_new_tokens=2)
    tiles = {"llava": [1, 1, 1], "llava_next": [5, 5, 3], "internvl": [3, 2, 1], "qwen2_vl": [1, 1, 1]}[family]
    assert [record.tokens_kept for record in drop.images] == [5 * count for count in tiles]
    for a, b in zip(drop.images, keep.images, strict=True):
        assert set(a.indices.tolist()) <= set(b.indices.tolist())
        assert (b.tokens_kept > a.tokens_kept) == (family == "llava_next")


class Everything(Stage):
    """Keeps what there is, without a budget."""

    name = "everything_there"

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(tokens.n))


def test_a_strategy_without_a_budget() -> None:
    tokens = image(3, 4)
    selection = PerTile(Everything()).select(tokens)
    assert (selection.kept, selection.requested) == (7, None)
