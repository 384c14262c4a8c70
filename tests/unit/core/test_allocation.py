"""Budgets that the images of a prompt share."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.oracle import tiny
from tokenprune import GreedyRepMax, MIAlignment, PruningStrategy, Tokens, TrimTokenator, parse, prune
from tokenprune.baselines import FastV, Random, UniformGrid
from tokenprune.core import shared_budget as module
from tokenprune.core.shared_budget import (
    PromptBudget,
    allocate,
    allocation_rules,
    inter_diversity,
    intra_diversity,
    register_allocation,
)
from tokenprune.core.signals import PROMPT_NUMBER
from tokenprune.repmax import mean_pairwise_distance
from tokenprune.testing import check_strategy, random_tokens


def filled_by_bisection(total: int, weights: list[float], sizes: list[int]) -> list[float]:
    """The shares before rounding, by another method."""
    low, high = 0.0, 1e12
    for _ in range(300):
        level = (low + high) / 2
        filled = [min(max(level * w, 1.0), float(n)) for w, n in zip(weights, sizes, strict=True)]
        low, high = (level, high) if sum(filled) < total else (low, level)
    return filled


images = st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 60)), min_size=1, max_size=7)


@given(images, st.integers(0, 500))
def test_counts_are_exact_within_bounds_and_next_to_the_real_shares(pairs: list[Any], total: int) -> None:
    weights, sizes = [w for w, _ in pairs], [n for _, n in pairs]
    counts = allocate(total, weights, sizes)
    within = min(max(total, len(sizes)), sum(sizes))
    assert sum(counts) == within
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    shares = filled_by_bisection(within, weights, sizes)
    assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts, shares, strict=True))


@given(images, st.integers(0, 400))
def test_a_larger_weight_of_the_same_size_gets_no_less(pairs: list[Any], total: int) -> None:
    counts = allocate(total, [w for w, _ in pairs], [30] * len(pairs))
    ordered = [count for _, count in sorted(zip([w for w, _ in pairs], counts, strict=True))]
    assert ordered == sorted(ordered) or len({w for w, _ in pairs}) < len(pairs)


@pytest.mark.parametrize(
    ("total", "weights", "sizes", "counts"),
    [
        (7, [1.0, 1.0, 1.0], [9, 9, 9], [3, 2, 2]),
        (100, [0.0, 1.0], [10, 20], [10, 20]),
        (25, [0.0, 1.0], [10, 20], [5, 20]),
        (12, [0.0, 0.0], [10, 20], [6, 6]),
        (0, [3.0, 1.0], [10, 20], [1, 1]),
        (20, [1e9, 1.0, 1.0], [5, 20, 20], [5, 8, 7]),
        (3, [], [], []),
    ],
)
def test_cases_by_hand(total: int, weights: list[float], sizes: list[int], counts: list[int]) -> None:
    assert allocate(total, weights, sizes) == counts


@pytest.mark.parametrize(
    ("weights", "sizes", "message"),
    [([1.0], [3, 4], "1 weights for sizes"), ([1.0, -1.0], [3, 4], "not negative"), ([float("nan")], [3], "finite")],
)
def test_weights_that_cannot_be_used(weights: list[float], sizes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(3, weights, sizes)


def test_diversities_equal_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.randn(n, 6, generator=generator) + shift for n, shift in ((5, 0.0), (9, 3.0), (1, 0.0))]
    for cloud in clouds[:2]:
        assert intra_diversity(cloud) == pytest.approx(
            mean_pairwise_distance(cloud.double(), distance="cosine"), abs=1e-5
        )
    assert intra_diversity(clouds[2]) == 0.0
    means = [cloud.mean(0) for cloud in clouds]
    found = inter_diversity([Tokens(cloud) for cloud in clouds])
    for i, value in enumerate(found):
        others = [1 - torch.cosine_similarity(means[i], means[j], dim=0).item() for j in range(3) if j != i]
        assert value == pytest.approx(sum(others) / 2, abs=1e-5)
    assert inter_diversity([Tokens(clouds[0])]) == [1.0]


def prompt_of(*clouds: torch.Tensor, prompt: int = 0) -> list[Tokens]:
    return [Tokens(cloud, prompt=prompt) for cloud in clouds]


def test_rules() -> None:
    """A uniform image, a diverse one, and one twice as large."""
    flat, rich = torch.ones(16, 8) + 0.01 * torch.eye(16, 8), torch.eye(8).repeat(2, 1)
    batch = prompt_of(flat, rich, torch.cat([rich, rich]))
    assert PromptBudget(UniformGrid(1), keep=16, rule="size").counts(batch) == [4, 4, 8]
    assert PromptBudget(UniformGrid(1), keep=16, rule="equal").counts(batch) == [6, 5, 5]
    intra = PromptBudget(UniformGrid(1), keep=16, rule="intra").counts(batch)
    assert intra == [1, 5, 10]
    both = PromptBudget(UniformGrid(1), keep=16, rule="intra_inter").counts(batch)
    assert sum(both) == 16
    # Images alone share nothing, and neither do prompts.
    alone = [Tokens(flat), Tokens(rich), *prompt_of(rich, rich, prompt=3)]
    assert PromptBudget(UniformGrid(1), keep=6, rule="intra").counts(alone) == [6, 6, 3, 3]
    assert PromptBudget(UniformGrid(1), keep=0.25).counts(alone) == [4, 4, 4, 4]


@pytest.mark.parametrize("rule", allocation_rules())
@pytest.mark.parametrize(
    "inner", [GreedyRepMax(1.0), TrimTokenator(1.0), MIAlignment(0.5) >> GreedyRepMax(1), Random(3, seed=4)], ids=repr
)
def test_within_an_image_the_strategy_chooses_with_its_count(inner: PruningStrategy, rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(4, 8, generator=generator)
    batch = [Tokens(torch.randn(n, 8, generator=generator), text=text, prompt=n % 2, key=n) for n in (10, 7, 12, 5)]
    strategy = PromptBudget(inner, keep=9, rule=rule)
    selections = strategy.select_batch(batch)
    for tokens, selection, count in zip(batch, selections, strategy.counts(batch), strict=True):
        expected = inner.with_keep(count).select(tokens)
        assert torch.equal(selection.indices, expected.indices)
        assert selection.kept == min(count, selection.kept)
    assert parse(repr(strategy)) == strategy
    check_strategy(strategy)


def test_in_pipelines() -> None:
    strategy = MIAlignment(0.8) >> PromptBudget(GreedyRepMax(1.0), keep=0.2, rule="intra")
    assert parse(repr(strategy)) == strategy
    assert repr(strategy).endswith("prompt_budget(strategy=greedy_repmax(keep=1.0), keep=0.2, rule='intra')")
    batch = [random_tokens(4, 5), random_tokens(3, 4)]
    selections = strategy.select_batch([tokens.knowing({PROMPT_NUMBER: 1}) for tokens in batch])
    assert sum(selection.kept for selection in selections) == 6, "20% of 32, rounded half up"


@pytest.mark.parametrize("inner", ["greedy_repmax(keep=1.0)", "fastv(keep=1, layer=1)"])
def test_in_models_images_of_a_prompt_share(inner: str) -> None:
    model, make_inputs = tiny()
    with prune(model, f"prompt_budget({inner}, keep=13, rule='intra')") as record:
        model.generate(**make_inputs(["compare <0> with <4> please", "here is <1>", "no image"]), max_new_tokens=2)
    kept = [image.tokens_kept for image in record.images]
    assert kept[0] + kept[1] == 13
    assert kept[2] == 13


def test_own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_rules", dict(module._rules))
    register_allocation("first_most", lambda images: [10.0] + [1.0] * (len(images) - 1))
    strategy = PromptBudget(UniformGrid(1), keep=12, rule="first_most")
    assert strategy.counts(prompt_of(torch.eye(20), torch.eye(20), torch.eye(20))) == [10, 1, 1]
    for name in ("size", "two words"):
        with pytest.raises(ValueError, match="must be a new identifier"):
            register_allocation(name, lambda images: [1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptBudget(UniformGrid(1), keep=0), "PromptBudget: keep must be"),
        (lambda: PromptBudget(UniformGrid(1), keep=3, rule="fair"), "rule must be one of 'size'"),
        (
            lambda: PromptBudget("uniform_grid(keep=1)", keep=3),  # type: ignore[arg-type]
            "must be a PruningStrategy",
        ),
        (lambda: PromptBudget(PromptBudget(UniformGrid(1), keep=3), keep=3), "shares a budget already"),
        (lambda: PromptBudget(GreedyRepMax(3) >> FastV(2, layer=1), keep=3), "act at different places"),
    ],
)
def test_what_cannot_be_shared(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
