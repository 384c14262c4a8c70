"""The controls: random, uniform, pooling."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune import MIAlignment, Tokens
from tokenprune.baselines import GridPool, Random, SmallestNorm, UniformGrid
from tokenprune.baselines.grid_pool import grid_pool, pooled_grid
from tokenprune.baselines.random_subset import random_subset
from tokenprune.baselines.uniform import uniform_grid


def test_random_subsets_are_uniform() -> None:
    # Every pair of 5 must come up equally often: 10 pairs, 4000 draws, binomial spread 19; five of them are allowed.
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for seed in range(4000):
        a, b = sorted(random_subset(5, 2, seed=seed).tolist())
        counts[a, b] += 1
    assert all(abs(count - 400) < 95 for count in counts.values())


def test_random_differs_between_images_and_seeds_only() -> None:
    tokens = [Tokens(torch.zeros(100, 2), key=key) for key in (1, 2)]
    one, two = (Random(10).select(t).indices.tolist() for t in tokens)
    assert one != two
    assert Random(10).select_batch(tokens[::-1])[1].indices.tolist() == one
    assert Random(10, seed=1).select(tokens[0]).indices.tolist() != one
    moved = Tokens(torch.ones(100, 7, dtype=torch.float16), key=1)
    assert Random(10).select(moved).indices.tolist() == one


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("0", TypeError)])
def test_random_refuses_a_bad_seed(seed: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="Random: seed must be"):
        Random(3, seed=seed)  # type: ignore[arg-type]


@given(st.integers(1, 30), st.integers(1, 30), st.data())
@settings(max_examples=200, deadline=None)
def test_uniform_keeps_exactly_k_distinct_cells(rows: int, columns: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows * columns))
    cells = uniform_grid(rows, columns, k).tolist()
    assert len(set(cells)) == k
    assert cells == sorted(cells)
    assert min(cells) >= 0
    assert max(cells) < rows * columns


@pytest.mark.parametrize("k", [16, 36, 64, 100, 128, 192])
def test_uniform_covers_the_image_evenly(k: int) -> None:
    cells = uniform_grid(24, 24, k)
    y, x = cells // 24, cells % 24
    assert abs(y.float().mean() - 11.5) < 1
    assert abs(x.float().mean() - 11.5) < 1
    every = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij"), -1).reshape(-1, 2)
    nearest = torch.cdist(every.double(), torch.stack([y, x], 1).double()).amin(1)
    assert nearest.max() <= 1.5 * (576 / k) ** 0.5  # no hole wider than one and a half spacings


def test_uniform_on_survivors_is_every_other_one() -> None:
    tokens = Tokens(torch.zeros(16, 1), grid=(4, 4)).take(torch.arange(0, 16, 2))
    assert UniformGrid(4).select(tokens).indices.tolist() == [1, 3, 5, 7]


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_pool_never_exceeds_the_budget(rows: int, columns: int, keep: int) -> None:
    r, c = pooled_grid(rows, columns, keep)
    assert 1 <= r <= rows
    assert 1 <= c <= columns
    assert r * c <= keep
    tokens = Tokens(torch.randn(rows * columns, 3), grid=(rows, columns))
    assert GridPool(keep).select(tokens).kept == r * c


def test_pool_equals_a_naive_mean() -> None:
    visual = torch.randn(6 * 8, 5, dtype=torch.float64)
    pooled = grid_pool(visual, (6, 8), (3, 4))
    image = visual.reshape(6, 8, 5)
    for r, c in itertools.product(range(3), range(4)):
        assert torch.allclose(pooled[r * 4 + c], image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((0, 1)), atol=1e-15)


def test_pool_of_a_subset_is_refused() -> None:
    tokens = Tokens(torch.zeros(16, 1), grid=(4, 4)).take(torch.arange(8))
    with pytest.raises(ValueError, match="complete raster, got 8 of 16"):
        GridPool(4).select(tokens)


def test_smallest_norm_is_the_alignment_stage_with_an_empty_meaning() -> None:
    visual = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    visual[7] = visual[5]  # a tie goes to the lower index
    found = SmallestNorm(6).select(Tokens(visual)).indices.tolist()
    norms = [sum(x * x for x in row) for row in visual.double().tolist()]
    assert found == sorted(sorted(range(40), key=lambda i: (norms[i], i))[:6])
    zero = Tokens(visual, text=torch.zeros(3, 6))
    assert found == MIAlignment(6).select(zero).indices.tolist()
