"""The contract suite over every registered strategy and over pipelines of them."""

import pytest

from tokenprune import GreedyRepMax, MIAlignment, Pipeline, PruningStrategy, TrimTokenator, strategies
from tokenprune.baselines import GridPool, Random, UniformGrid
from tokenprune.core.text import example
from tokenprune.testing import check_strategy

EXAMPLES = [example(cls) for _, cls in sorted(strategies().items())]


@pytest.mark.parametrize("strategy", EXAMPLES, ids=repr)
def test_every_registered_strategy_keeps_the_contract(strategy: PruningStrategy) -> None:
    check_strategy(strategy)


OTHERS = [
    MIAlignment(0.5, metric="euclidean"),
    MIAlignment(0.5, metric="cosine"),
    MIAlignment(0.5, reduce="max"),
    MIAlignment(0.5, metric="cosine", reduce="max", text="question"),
    GreedyRepMax(5, distance="euclidean"),
    TrimTokenator(0.25, align=0.5),
    TrimTokenator(0.9, align=0.5),
    Random(3, seed=11),
    MIAlignment(0.8) >> GreedyRepMax(10),
    GreedyRepMax(0.5) >> MIAlignment(0.25),
    GreedyRepMax(0.5) >> UniformGrid(0.25) >> Random(3),
    GridPool(0.5) >> GreedyRepMax(4),
    Pipeline([UniformGrid(7)]),
]


@pytest.mark.parametrize("strategy", OTHERS, ids=repr)
def test_options_and_pipelines_keep_the_contract(strategy: PruningStrategy) -> None:
    check_strategy(strategy)


def test_there_is_something_to_check() -> None:
    names = {strategy.name for strategy in EXAMPLES}
    assert {"mi_alignment", "greedy_repmax", "trim_tokenator", "random", "uniform_grid", "grid_pool"} <= names
