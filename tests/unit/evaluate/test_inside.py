"""Methods that act inside the decoder or inside the vision tower, in a comparison."""

from pathlib import Path

import pytest
import torch

from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples, tiny_settings
from tokenprune import PruningStrategy, parse, prune
from tokenprune.evaluate.batches import processed
from tokenprune.evaluate.comparison import compare
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.runner import Runner

SAMPLES = tiny_samples(6)


@pytest.mark.parametrize(
    "text",
    [
        "fastv(keep=4, layer=1)",
        "greedy_repmax(keep=0.5) >> dart(keep=3, layer=1)",
        "tome(keep=6)",
        "tome(keep=9) >> fastervlm(keep=5) >> fastv(keep=2, layer=1)",
    ],
)
def test_the_runner_does_what_prune_does(text: str) -> None:
    loaded, strategy = tiny_loaded(), parse(text)
    runner = Runner(loaded, SAMPLES, batch_size=6, max_new_tokens=3)
    runner.check([strategy])
    runner.prepare()
    records, seconds = runner.run_batch(runner.batches[0], strategy)
    inputs = processed(loaded.processor, SAMPLES)
    with prune(loaded.model, strategy) as record:
        sequences = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    answers = loaded.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [entry["answer"] for entry in records] == [answer.strip() for answer in answers]
    for entry, image in zip(records, record.images, strict=True):
        (found,) = entry["images"]
        assert found["indices"] == image.indices.tolist()
        assert found["tokens_out"] == image.tokens_kept
        assert found.get("layer_average", found["tokens_out"]) == image.layer_average
    assert all(value is not None and value > 0 for value in seconds.values())
    layers = loaded.model.model.language_model.layers
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_the_table_counts_tokens_per_layer(tmp_path: Path) -> None:
    settings = tiny_settings(methods=(Method("fastv(layer=1)"), Method("greedy_repmax")), budgets=(4,))
    result = compare(tiny_loaded(), SAMPLES, settings, data="tiny", out=tmp_path, figures=False)
    out = {row.method: row.tokens_out for row in result.rows}
    assert out["greedy_repmax"] == 4
    assert out["fastv(layer=1)"] == (16 + 4) / 2


def test_budgets_may_be_means_over_layers(tmp_path: Path) -> None:
    methods = (Method("fastv(layer=1)"), Method("greedy_repmax(keep=13) >> fastv(layer=1)"), Method("greedy_repmax"))
    settings = tiny_settings(methods=methods, budgets=(0.75, 0.5625), budget="layer-average")
    small = tiny_settings(methods=methods, budgets=(0.5,), budget="layer-average")
    words = r"fastv\(layer=1\) at a budget of 50%.* average of 8 is out of reach.* from 8.5 to 16"
    with pytest.raises(ValueError, match=words):
        compare(tiny_loaded(), SAMPLES, small, data="tiny", out=tmp_path, figures=False)
    result = compare(tiny_loaded(), SAMPLES, settings, data="tiny", out=tmp_path, figures=False)
    found = {(row.method, row.keep): (row.tokens_out, row.tokens_kept) for row in result.rows}
    assert found["greedy_repmax", 0.75] == (12, 12)
    assert found["fastv(layer=1)", 0.75] == (12, 8)
    assert found["fastv(layer=1)", 0.5625] == (9, 2)
    assert found["greedy_repmax(keep=13) >> fastv(layer=1)", 0.75] == (12, 11)
    assert result.facts["config"]["budget"] == "layer-average"


def test_merging_in_the_tower_leaves_the_features_of_other_methods_alone_and_has_its_own_time(tmp_path: Path) -> None:
    settings = tiny_settings(methods=(Method("tome"), Method("greedy_repmax")), budgets=(6,))
    result = compare(tiny_loaded(), SAMPLES, settings, data="tiny", out=tmp_path / "both", figures=False)
    alone = compare(
        tiny_loaded(),
        SAMPLES,
        tiny_settings(methods=(Method("greedy_repmax"),), budgets=(6,)),
        data="tiny",
        out=tmp_path / "one",
        figures=False,
    )
    rows = {row.method: row for row in result.rows}
    assert rows["tome"].tokens_out == 6
    assert rows["tome"].times["vision"] != rows["greedy_repmax"].times["vision"]
    assert rows["random"].accuracy == next(row for row in alone.rows if row.method == "random").accuracy
    assert rows["greedy_repmax"].accuracy == alone.rows[-1].accuracy


def test_a_layer_that_the_model_does_not_have_is_refused_before_work() -> None:
    strategy: PruningStrategy = parse("fastv(keep=4)")
    with pytest.raises(ValueError, match="layers 0 to 1"):
        Runner(tiny_loaded(), SAMPLES, batch_size=6).check([strategy])
    assert torch.is_grad_enabled()
