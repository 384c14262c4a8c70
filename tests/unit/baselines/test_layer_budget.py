"""Layer-averaged budgets: the conversions of the literature's numbers, and what cannot be had."""

import pytest

from tokenprune.baselines.dart import dart_per_pivot
from tokenprune.baselines.layer_budget import (
    fastv_keep_for,
    layer_average,
    pyramiddrop_ratio_for,
    tokens_entering,
    tome_merges_for,
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
