"""Layer-averaged budgets: the conversions of the literature's numbers, and what cannot be had."""

import pytest

from tokenprune import PruningStrategy, parse
from tokenprune.baselines import DART, VTW, FastV, FitPrune, MustDrop, PyramidDrop, SparseVLM
from tokenprune.baselines.dart import dart_per_pivot
from tokenprune.baselines.layer_budget import (
    fastv_keep_for,
    fitprune_drops_for,
    keep_for_layer_average,
    layer_average,
    layers_at_depth,
    planned_average,
    pyramiddrop_ratio_for,
    tokens_entering,
    tome_merges_for,
    vtw_layer_for,
)
from tokenprune.baselines.pyramiddrop import LAYERS, pyramiddrop_counts
from tokenprune.baselines.sparsevlm import SCHEDULES
from tokenprune.baselines.vtw import DEFAULT_LAYER

N, DEPTH = 576, 32


@pytest.mark.parametrize(("layer", "kept"), [(2, (166.4, 98.1, 29.9)), (3, (152.3, 81.7, 11.0))])
def test_fastv(layer: int, kept: tuple[float, ...]) -> None:
    for average, expected in zip((192, 128, 64), kept, strict=True):
        keep = fastv_keep_for(average, n=N, layers=DEPTH, layer=layer)
        assert round(keep, 1) == expected
        assert abs(layer_average(tokens_entering(N, DEPTH, [(layer, round(keep))])) - average) < 1


def test_one_cut_averages() -> None:
    for keep, expected in ((192, 216.0), (128, 156.0), (64, 96.0)):
        assert layer_average(tokens_entering(N, DEPTH, [(2, keep)])) == expected
        dart = 4 + 8 * dart_per_pivot(N, max_num_trunction=keep)
        assert round(layer_average(tokens_entering(N, DEPTH, [(2, dart)])), 2) == expected + 3.75
    assert layer_average(tokens_entering(N, DEPTH, [(DEFAULT_LAYER, 0)])) == 270


def test_sparsevlm_schedules() -> None:
    for budget, expected in ((192, 206.5), (128, 145.4), (64, 82.3)):
        left, stages = N, []
        for keep, layer in zip(SCHEDULES[budget], (3, 7, 16), strict=True):
            keep = min(keep, left - 1)
            recycled = int(0.3 * (left - keep)) + 1
            left = keep + recycled // 10 + 1
            stages.append((layer, left))
        assert layer_average(tokens_entering(N, DEPTH, stages)) == pytest.approx(expected, abs=0.051)


def test_pyramiddrop() -> None:
    default = list(zip(LAYERS, pyramiddrop_counts(N), strict=True))
    assert layer_average(tokens_entering(N, DEPTH, default)) == 270
    ratio = pyramiddrop_ratio_for(192, layers=DEPTH, n=N)
    stages = list(zip(LAYERS, pyramiddrop_counts(N, (ratio, ratio**2, ratio**3)), strict=True))
    assert abs(layer_average(tokens_entering(N, DEPTH, stages)) - 192) < 1
    assert pyramiddrop_ratio_for(576, layers=DEPTH, n=N) == pytest.approx(1)
    for average in (128, 64):
        with pytest.raises(ValueError, match=f"{average} is out of reach.*144"):
            pyramiddrop_ratio_for(average, layers=DEPTH, n=N)


def test_tome() -> None:
    assert [round(tome_merges_for(keep, n=N, layers=24), 1) for keep in (192, 128, 64)] == [16.0, 18.7, 21.3]


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="out of reach"):
        fastv_keep_for(30, n=N, layers=DEPTH, layer=2)
    with pytest.raises(ValueError, match="layer"):
        fastv_keep_for(192, n=N, layers=DEPTH, layer=32)
    for stages in ([(3, 4), (2, 1)], [(32, 4)], [(2, 4), (2, 3)]):
        with pytest.raises(ValueError, match="ascend"):
            tokens_entering(N, DEPTH, stages)


def test_methods_with_a_budget_come_nearest_to_a_mean() -> None:
    for build in (
        FastV,
        DART,
        lambda keep: PyramidDrop(keep, layers=(4, 8, 12)),
        lambda keep: SparseVLM(keep, layers=(3, 7, 16)),
        lambda keep: SparseVLM(keep, schedule="192", layers=(3, 7, 16)),
    ):
        for average in (192, 300):
            keep = keep_for_layer_average(build, average, n=N, layers=DEPTH)
            off = [abs(planned_average(build(k), n=N, layers=DEPTH) - average) for k in (keep - 1, keep, keep + 1)]
            assert off[1] == min(off) < 2


def test_methods_refuse_what_cannot_be_had() -> None:
    for average in (128, 64):
        with pytest.raises(ValueError, match=f"{average} is out of reach"):
            keep_for_layer_average(lambda keep: PyramidDrop(keep), average, n=N, layers=DEPTH)
    with pytest.raises(ValueError, match="30 is out of reach"):
        keep_for_layer_average(lambda keep: SparseVLM(keep, layers=(3, 7, 16)), 30, n=N, layers=DEPTH)
    with pytest.raises(ValueError, match="5 is out of reach"):
        vtw_layer_for(5, n=N, layers=DEPTH)
    with pytest.raises(ValueError, match="finds the number of tokens itself"):
        planned_average(MustDrop.published(192), n=N, layers=DEPTH)
    with pytest.raises(ValueError, match="profile must be weights"):
        fitprune_drops_for(100, (0, 0), n=N)


def test_vtw_and_fitprune() -> None:
    assert vtw_layer_for(270, n=N, layers=DEPTH) == DEFAULT_LAYER
    profile = (3, 1, 0, 2) + (1,) * 28
    for average in (400, 192, 40):
        drops = fitprune_drops_for(average, profile, n=N)
        assert len(drops) == DEPTH
        reached = planned_average(FitPrune(drops), n=N, layers=DEPTH)
        entering = [N - sum(drops[:layer]) for layer in range(DEPTH)]
        assert reached == sum(entering) / DEPTH
        assert average - 25 < reached <= average
        assert entering[-1] >= 1


@pytest.mark.parametrize(
    "strategy",
    [
        SparseVLM(5),
        SparseVLM(3, schedule=(12, 7, 3)),
        FitPrune((0.25, 3, 0, 1)),
        VTW(),
        parse("greedy_repmax(keep=0.75) >> sparsevlm_stage(keep=6, layer=1) >> fastv(keep=4, layer=3)"),
    ],
    ids=repr,
)
def test_plans_equal_what_enters_the_layers_of_a_model(strategy: PruningStrategy) -> None:
    from tokenprune import prune
    from tokenprune.testing import tiny_llava

    model, make_inputs = tiny_llava(layers=4)
    with prune(model, strategy) as record:
        model.generate(**make_inputs(["what is in <0> then"]), max_new_tokens=1)
    planned = planned_average(strategy.at_depth(4), n=16, layers=4)
    assert record.images[0].layer_average == planned


def test_layers_ascend_at_every_depth() -> None:
    for layers in ((3, 7, 16), (3, 7, 11, 15), (15,), (1, 2, 31)):
        for depth in range(len(layers) + 1, 40):
            scaled = layers_at_depth(layers, depth)
            assert list(scaled) == sorted(set(scaled))
            assert 1 <= scaled[0] <= scaled[-1] <= depth - 1
            if depth >= DEPTH:
                assert scaled == layers
        with pytest.raises(ValueError, match="stages need at least"):
            layers_at_depth(layers, len(layers))
