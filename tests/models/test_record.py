"""The record says what was done."""

import json
from typing import Any

import pytest
import torch

from tests.models.oracle import BATCHES, ByContent, tiny
from tokenprune import BeforeDecoder, MIAlignment, Record, prune
from tokenprune.baselines import GridPool, UniformGrid

ROWS = BATCHES["two images"]


def test_every_image_of_every_call() -> None:
    model, make_inputs = tiny()
    strategy = MIAlignment(0.5) >> UniformGrid(40)
    with prune(model, strategy, positions="original") as record:
        model.generate(**make_inputs(ROWS), max_new_tokens=1)
        model(**make_inputs(["see <8>"]))
    assert isinstance(record, Record)
    assert [(i.call, i.prompt, i.row, i.image) for i in record.images] == [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (0, 1, 1, 0),
        (1, 0, 0, 0),
    ]
    assert [call.kind for call in record.calls] == ["generate", "forward"]
    for image in record.images:
        assert (image.tokens_in, image.tokens_kept, image.requested) == (16, 8, 8)
        assert (image.site, image.positions, image.merged) == ("projector", "original", False)
        assert image.indices.dtype == torch.int64
        assert image.indices.device.type == "cpu"
        assert image.indices.tolist() == sorted(set(image.indices.tolist()))
        assert [(s.stage, s.tokens_in, s.tokens_out) for s in image.stages] == [
            ("mi_alignment(keep=0.5)", 16, 8),
            ("uniform_grid(keep=40)", 8, 8),
        ]
        assert image.select_seconds == record.calls[image.call].select_seconds > 0
        assert image.kept_share == 0.5
    assert (record.tokens_in, record.tokens_kept, record.kept_share) == (64, 32, 0.5)
    assert record.select_seconds == sum(call.select_seconds for call in record.calls)
    assert record.strategy is strategy


def test_asking_for_too_much_shows() -> None:
    model, make_inputs = tiny()
    with prune(model, UniformGrid(40)) as record:
        model.generate(**make_inputs(["see <8> there"]), max_new_tokens=1)
    assert (record.images[0].requested, record.images[0].tokens_kept) == (40, 16)


@pytest.mark.parametrize(("given", "used"), [(None, "compact"), ("original", "original"), ("compact", "compact")])
def test_the_policy_used_is_named(given: Any, used: str) -> None:
    model, make_inputs = tiny()
    with prune(model, "grid_pool(keep=4)", positions=given) as record:
        model.generate(**make_inputs(["see <8> there"]), max_new_tokens=1)
    assert record.positions == record.images[0].positions == used
    assert record.strategy == GridPool(4)
    assert record.images[0].merged


def test_the_authors_policy_is_taken() -> None:
    model, _ = tiny()

    class Original(ByContent):
        """Its authors keep positions."""

        place = BeforeDecoder("original")

    with prune(model, Original()) as record:
        assert record.positions == "original"


def test_text_forms() -> None:
    model, make_inputs = tiny()
    with prune(model, UniformGrid(4)) as record:
        assert repr(record) == "Record(uniform_grid(keep=4) at the projector, compact positions: 0 calls, no images)"
        model.generate(**make_inputs(ROWS), max_new_tokens=1)
    assert "3 images in 1 calls, kept 12 of 48 visual tokens (25.0%)" in record.summary()
    told = json.loads(json.dumps(record.to_dict()))
    assert told["strategy"] == "uniform_grid(keep=4)"
    assert told["calls"][0]["images"][2]["indices"] == [5, 7, 13, 15]
    assert told["calls"][0]["columns_kept"] == record.calls[0].columns_kept
    assert "ImageRecord(call=0, prompt=0, image=0, tokens_in=16, tokens_kept=4" in repr(record.images[0])
