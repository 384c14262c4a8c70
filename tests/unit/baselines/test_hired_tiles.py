"""HiRED's rule for tiles on the tokens of a model, against the rule on whole tiles, which is checked by vectors."""

from dataclasses import replace

import pytest
import torch

from tests.models.family_oracle import tiny
from tokenprune import Tokens, prune
from tokenprune.baselines import HiREDNext
from tokenprune.baselines.hired import hired_next
from tokenprune.core.signals import TILE_GRID, TILES
from tokenprune.models import UnsupportedError
from tokenprune.testing import random_tokens

SIDE = 6


def tiled(rows: int, columns: int, seed: int) -> tuple[Tokens, torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """An image without padding as LLaVA-NeXT lays it out, attention by tile, and (tile, place) of each real token."""
    draw = torch.Generator().manual_seed(seed)
    attention = torch.rand(rows * columns + 1, 3, SIDE**2, generator=draw)
    first = torch.rand(3, SIDE**2, generator=draw)
    cells: list[tuple[int, int] | None] = [(0, place) for place in range(SIDE**2)]
    for y in range(rows * SIDE):
        for x in range(columns * SIDE):
            cells.append((1 + y // SIDE * columns + x // SIDE, y % SIDE * SIDE + x % SIDE))
        cells.append(None)
    zero = torch.zeros(3)
    tokens = Tokens(
        torch.zeros(len(cells), 2),
        tiles=torch.tensor([-1 if cell is None else cell[0] for cell in cells]),
        tile_grid=(rows, columns),
        cls_attention=torch.stack([zero if cell is None else attention[cell[0], :, cell[1]] for cell in cells], 1),
        cls_attention_first=torch.stack([first[:, c[1]] if c is not None and c[0] == 0 else zero for c in cells], 1),
    )
    return tokens, attention, first, [(-1, -1) if cell is None else cell for cell in cells]


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (1, 2), (3, 1)])
@pytest.mark.parametrize(("rate", "alpha"), [(0.2, 0.5), (0.4, 0.25), (0.11, 0.8)])
def test_it_is_the_rule_on_whole_tiles(rows: int, columns: int, rate: float, alpha: float, official: bool) -> None:
    for seed in range(3):
        tokens, attention, first, cells = tiled(rows, columns, seed)
        whole = hired_next(
            attention, first, rate=rate, alpha=alpha, grid_h=rows, grid_w=columns, official=official
        ).kept_mask
        expected = [i for i, (tile, place) in enumerate(cells) if tile < 0 or bool(whole[tile, place])]
        found = HiREDNext(rate, alpha=alpha, official=official).select(tokens)
        assert found.indices.tolist() == expected


def test_padding_that_was_cut_away_takes_no_part() -> None:
    tokens, *_ = tiled(2, 2, 5)
    rows = torch.arange(tokens.n)[tokens.tiles != 3]  # a tile that is all padding
    cut = tokens.take(rows)
    selection = HiREDNext(40).select(replace(cut, index=None, total=None))
    tiles = cut.tiles
    assert tiles is not None
    kept = tiles[selection.indices]
    assert int((kept == -1).sum()) == 12
    assert 0 < int((kept >= 0).sum()) <= 40
    assert int((kept == 0).sum()) == 20


def test_a_tiny_budget_keeps_one_token_of_the_whole_image() -> None:
    tokens, *_ = tiled(1, 2, 0)
    selection = HiREDNext(1).select(tokens)
    assert tokens.tiles is not None
    assert tokens.tiles[selection.indices].tolist().count(0) == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a number from 0 to 1, got 2"):
        HiREDNext(4, alpha=2)
    tokens = random_tokens()
    assert tokens.tiles is not None
    with pytest.raises(ValueError, match="names no token of tile 0"):
        HiREDNext(4).select(tokens.knowing({TILES: tokens[TILES] + 1, TILE_GRID: (1, 3)}))
    with pytest.raises(UnsupportedError, match=r"needs Tokens\.tiles"):
        prune(tiny("llava")[0], HiREDNext(4))


def test_on_llava_next() -> None:
    model, make_inputs = tiny("llava_next")
    with prune(model, "hired_next(keep=0.3)") as record:
        model.generate(**make_inputs(["look at <0> and <1> now", "then <3>"]), max_new_tokens=2)
    for image in record.images:
        newlines = {52: 4, 70: 6, 88: 8}[image.tokens_in]
        assert newlines < image.tokens_kept <= newlines + int(0.3 * (image.tokens_in - newlines))
