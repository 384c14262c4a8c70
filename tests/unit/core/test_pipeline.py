"""Pipelines: composition of indices, budgets of the original image, and checks at construction."""

import pytest
import torch

from tokenprune import GreedyRepMax, MIAlignment, Pipeline, TrimTokenator
from tokenprune.baselines import GridPool, Random, UniformGrid
from tokenprune.core.signals import GRID, QUESTION, TEXT, WHOLE_IMAGE
from tokenprune.testing import random_tokens


def test_indices_refer_to_the_original_image() -> None:
    tokens = random_tokens(8, 8)
    first = MIAlignment(0.5).select(tokens)
    inner = GreedyRepMax(10).select(tokens.take(first.indices))
    both = (MIAlignment(0.5) >> GreedyRepMax(10)).select(tokens)
    assert both.indices.tolist() == first.indices[inner.indices].tolist()
    assert both.order is not None
    assert inner.order is not None
    assert both.order.tolist() == first.indices[inner.order].tolist()


def test_shares_refer_to_the_original_count() -> None:
    selection = (UniformGrid(0.5) >> MIAlignment(0.25) >> Random(0.125)).select(random_tokens(8, 8))
    assert [(stage.tokens_in, stage.tokens_out) for stage in selection.stages] == [(64, 32), (32, 16), (16, 8)]


def test_more_than_is_left_keeps_everything_and_says_so() -> None:
    selection = GreedyRepMax(100).select(random_tokens(2, 3))
    assert (selection.kept, selection.requested, selection.clamped) == (6, 100, True)
    selection = (MIAlignment(4) >> GreedyRepMax(5)).select(random_tokens(2, 3))
    assert (selection.kept, selection.clamped) == (4, False)


def test_pipelines_are_flat_equal_and_hashable() -> None:
    a, b, c = MIAlignment(0.8), GreedyRepMax(64), UniformGrid(8)
    assert (a >> b) >> c == a >> (b >> c) == Pipeline([a, b, c])
    assert hash(a >> b) == hash(Pipeline([a, b]))
    assert a >> b != b >> a
    assert TrimTokenator(64) == a >> b
    assert a >> b == TrimTokenator(64)


def test_facts_follow_from_the_stages() -> None:
    pipeline = GridPool(0.5) >> MIAlignment(4, text="question")
    assert set(pipeline.needs) == {GRID, WHOLE_IMAGE, TEXT, QUESTION}
    assert [stage.yields for stage in pipeline.stages] == ["merged", "subset"]


def test_merged_features_pass_through_later_stages() -> None:
    tokens = random_tokens(4, 4)
    pooled = GridPool(4).select(tokens)
    both = (GridPool(4) >> MIAlignment(2)).select(tokens)
    assert both.features is not None
    assert pooled.features is not None
    rows = [pooled.indices.tolist().index(i) for i in both.indices.tolist()]
    assert torch.equal(both.features, pooled.features[rows])


def test_what_cannot_work_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="complete raster.*put it first"):
        MIAlignment(0.5) >> GridPool(4)
    with pytest.raises(ValueError, match="needs Tokens.grid .*put uniform_grid"):
        GridPool(8) >> UniformGrid(4)
    with pytest.raises(ValueError, match="stages is empty"):
        Pipeline([])
    with pytest.raises(TypeError, match="must be a PruningStrategy, got 'random'"):
        Pipeline(["random"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        MIAlignment(0.5) >> 3  # type: ignore[operator]


def test_a_pipeline_is_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        (MIAlignment(2) >> GreedyRepMax(1)).name = "decoder"  # type: ignore[misc]


def test_trim_tokenator_meets_a_budget_above_its_first_stage() -> None:
    tokens = random_tokens(10, 10)
    selection = TrimTokenator(0.9).select(tokens)
    assert selection.kept == 90
    assert selection.stages[0].tokens_out == 90
    assert TrimTokenator(1.0).select(tokens).kept == 100
    mixed = [tokens, random_tokens(3, 3), random_tokens(10, 10, seed=5)]
    for strategy in (TrimTokenator(20), TrimTokenator(0.9)):
        together = [selection.indices.tolist() for selection in strategy.select_batch(mixed)]
        assert together == [strategy.select(tokens).indices.tolist() for tokens in mixed]
