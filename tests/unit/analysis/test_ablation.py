"""The ablation on a tiny model: cells, resuming, pick order and positions, differences."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples
from tokenprune import GreedyRepMax, Tokens, prune
from tokenprune.analysis import AblationReport, PickOrder, Variant, ablation_variants, run_ablation
from tokenprune.baselines import FastV, GridPool, UniformGrid
from tokenprune.evaluate.answers import answer, ask_batches
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.runner import Runner
from tokenprune.evaluate.samples import Sample

RIGHT = ("w51 w18", "w51 w116")


def own_variants() -> list[Variant]:
    return [
        Variant(factor="stage", label="greedy", text="greedy_repmax", reference=True),
        Variant(factor="stage", label="aligned", text="mi_alignment"),
        Variant(factor="order", label="raster", text="greedy_repmax", positions="compact", reference=True),
        Variant(factor="order", label="pick", text="greedy_repmax", positions="compact", pick_order=True),
        Variant(factor="order", label="original", text="greedy_repmax", positions="original"),
        Variant(factor="controls", label="random", text="random", reference=True),
    ]


def ablate(out: Path, samples: list[Sample], **options: Any) -> AblationReport:
    settings: dict[str, Any] = {"data": "tiny", "seeds": (0, 1), "batch_size": 3, "max_new_tokens": 2}
    return run_ablation(tiny_loaded(), samples, own_variants(), 4, out=out, **{**settings, **options})


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return tiny_samples(8, answers=RIGHT)


def test_rows_are_those_of_the_strategies_run_by_hand(tmp_path: Path, samples: list[Sample]) -> None:
    report = ablate(tmp_path, samples)
    assert report.complete
    assert report.cells == 1 + 4 + 2  # dense; "raster" is "greedy" again, so it does not run twice; two seeds
    loaded = tiny_loaded()
    (batch,) = ask_batches(loaded, samples)
    right = {}
    for row in report.rows:
        found = []
        for _, strategy in row.variant.strategies(4, (0, 1)):
            with prune(loaded.model, strategy, positions=row.variant.positions):
                pass  # it fits the model
            answers = answer(loaded, batch, strategy, positions=row.variant.positions, max_new_tokens=2)
            found.append([one.correct for one in answers])
        right[row.variant.label] = np.array(found, dtype=float).mean(0)
        assert row.accuracy.value == pytest.approx(right[row.variant.label].mean())
        assert row.kept == 4
    by_label = {row.variant.label: row for row in report.rows}
    assert by_label["greedy"].difference is None
    difference = by_label["aligned"].difference
    assert difference is not None
    assert difference.value == pytest.approx((right["aligned"] - right["greedy"]).mean())
    over = by_label["greedy"].over_random
    assert over is not None
    assert over.value == pytest.approx((right["greedy"] - right["random"]).mean())
    assert by_label["random"].seeds == 2
    for row in report.rows:
        assert (row.p_corrected is None) == (row.p_value is None) == row.variant.reference
        assert row.p_value is None or row.p_corrected is None or row.p_corrected >= row.p_value
    ax = Figure().subplots()
    assert report.plot(ax) is ax
    assert any(text.startswith("stage: against 'greedy'") for text in report.findings)


def test_a_stopped_ablation_goes_on_where_it_was(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ablate(tmp_path / "whole", samples)
    plain, calls = Runner.run, []

    def stop(self: Runner, *args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Runner, "run", stop)
    stopped = ablate(tmp_path, samples)
    assert (stopped.finished, stopped.complete) == (3, False)
    assert [row.variant.label for row in stopped.rows] == ["greedy", "aligned", "raster"]
    resumed = ablate(tmp_path, samples)
    assert (resumed.reused, resumed.complete) == (3, True)
    assert calls[4:] == [calls[3], *calls[5:]]  # nothing that was finished ran again
    assert resumed.rows == whole.rows
    assert ablate(tmp_path, samples, batch_size=2).folder != resumed.folder


def test_pick_order_feeds_the_tokens_as_they_were_picked() -> None:
    tokens = Tokens(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    inner = GreedyRepMax(5)
    plain, ordered = inner.select(tokens), PickOrder(inner).select(tokens)
    assert plain.order is not None
    assert ordered.indices.tolist() == plain.order.tolist() != plain.indices.tolist()
    assert ordered.indices.sort().values.tolist() == plain.indices.tolist()
    for wrong in (FastV(4), GridPool(4)):
        with pytest.raises(ValueError, match="there is no order to feed"):
            PickOrder(wrong)
    with pytest.raises(ValueError, match="picks all tokens at once"):
        PickOrder(UniformGrid(4)).select(Tokens(torch.ones(16, 2), grid=(4, 4)))


def test_every_standard_variant_is_a_strategy_and_every_factor_has_one_reference() -> None:
    for keep in (0.111, 0.5, 4):
        variants = ablation_variants(keep)
        for factor in {v.factor for v in variants}:
            members = [v for v in variants if v.factor == factor]
            assert sum(v.reference for v in members) == 1, factor
            assert len({v.label for v in members}) == len(members) > 1
        assert all(v.strategies(keep, (0,)) for v in variants)
    shares = [v.text for v in ablation_variants(0.5) if v.factor == "share of stage 1"]
    assert shares[-1] == "mi_alignment"
    assert not any("keep=0.35" in text for text in shares)
    assert not any("exact" in v.text for v in ablation_variants(0.5, exact_seconds=0))
    assert Method("smallest_norm(keep=0.8) >> greedy_repmax").strategy(keep=4)


def test_wrong_variants_are_named(tmp_path: Path, samples: list[Sample]) -> None:
    twice = [own_variants()[0], own_variants()[0]]
    with pytest.raises(ValueError, match="'greedy' occurs twice in the factor 'stage'"):
        run_ablation(tiny_loaded(), samples, twice, 4, data="tiny", out=tmp_path)
    with pytest.raises(ValueError, match="variants is empty"):
        run_ablation(tiny_loaded(), samples, [], 4, data="tiny", out=tmp_path)
