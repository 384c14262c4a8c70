"""The default data and model, in small."""

from collections import Counter
from pathlib import Path

import pytest

from tests.unit.evaluate.tiny import tiny_settings
from tokenprune.bundled import KINDS
from tokenprune.evaluate.comparison import compare
from tokenprune.evaluate.loading import folder_digest, load
from tokenprune.evaluate.methods import Method
from tokenprune.evaluate.samples import samples_digest
from tokenprune.evaluate.scenes import bundled_samples


def test_every_scene_is_asked_once_and_every_kind_equally_often() -> None:
    samples = bundled_samples(2 * len(KINDS))
    assert set(Counter(sample.kind for sample in samples).values()) == {2}
    assert len({sample.id for sample in samples}) == len(samples)
    assert samples_digest(samples) == samples_digest(bundled_samples(2 * len(KINDS)))
    assert samples_digest(samples) != samples_digest(bundled_samples(2 * len(KINDS), seed=1))
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        bundled_samples(0)


def test_the_bundled_model_answers_and_loses_answers_with_its_tokens(tmp_path: Path) -> None:
    settings = tiny_settings(methods=(Method("greedy_repmax"),), budgets=(0.056,), batch_size=10, max_new_tokens=4)
    samples = bundled_samples(2 * len(KINDS))
    result = compare(load(device="cpu"), samples, settings, data="scenes", out=tmp_path, figures=False)
    dense, random = result.rows[:2]
    assert dense.accuracy.value >= 0.75
    assert random.accuracy.value < dense.accuracy.value
    assert dense.tokens_out == 256
    assert random.tokens_out == 14
    assert dense.output_tokens == 2  # one word and the end token


def test_a_changed_weight_file_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\0" * (17 * 2**20))
    before = folder_digest(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\1")
    assert folder_digest(tmp_path) != before
