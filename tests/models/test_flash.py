"""The FlashAttention path of transformers: two-dimensional masks, unpadding and packing; the kernels are emulated."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.models.decoder_oracle import Attended, Stage, check_decoder, most_attended
from tests.models.flash import FLASH, emulated_flash, flash_tiny
from tests.models.oracle import BATCHES, ByContent, reference_rows, tiny, traces
from tests.models.test_turns import LATER, SETTINGS, check_turn, images_of, kept_of, say
from tokenprune import PruningStrategy, prune
from tokenprune.baselines import FasterVLM, FastV, PyramidDropStage, VisPruner
from tokenprune.core.places import Positions


@pytest.fixture
def kernels() -> Iterator[dict[str, int]]:
    with emulated_flash() as calls:
        yield calls


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_before_the_language_model(kernels: dict[str, int], batch: str, positions: Positions, cache: str) -> None:
    model, make_inputs = flash_tiny()
    inputs = make_inputs(BATCHES[batch])
    settings = {**SETTINGS, "max_new_tokens": 4}
    before = traces(model)
    with prune(model, ByContent(), positions=positions) as record:
        output = model.generate(**inputs, **settings, cache_implementation=cache)
    assert traces(model) == before
    logits = torch.stack(output.logits, dim=1)
    kernels_called = dict(kernels)
    plain, _ = tiny()  # the same weights; the reference needs masks that flash cannot take
    for row, expected in enumerate(reference_rows(plain, inputs, record, positions, steps=4)):
        assert (logits[row] - expected.logits).abs().max() <= 1e-5
    masked = len(inputs["input_ids"]) > 1 or cache == "static"  # rows of different length, slots not yet written to
    assert kernels_called["dense"] > 0, "the vision tower has no padding"
    assert (kernels_called["packed"] > 0) == masked, "gaps in positions must not look like packed prompts"


@pytest.mark.parametrize("batch", ["padded", "equal length", "one row", "two images"])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_inside_the_decoder(kernels: dict[str, int], batch: str, positions: Positions) -> None:
    model, make_inputs = flash_tiny(4)
    counted = most_attended(lambda key, left: 3 + key % 9)
    stages = [Stage(2, positions, counted)]
    check_decoder(model, make_inputs(BATCHES[batch]), Attended(), stages, positions=positions)
    ranked = most_attended(lambda key, left: 5, following=True)
    check_decoder(
        model,
        make_inputs(BATCHES[batch]),
        PyramidDropStage(5, layer=1),
        [Stage(1, positions, ranked)],
        positions=positions,
    )


@pytest.mark.parametrize("strategy", [FasterVLM(5), VisPruner(5), FastV(4, layer=1)], ids=repr)
def test_signals_are_read_while_flash_stays_on(kernels: dict[str, int], strategy: PruningStrategy) -> None:
    kept = []
    for model, make_inputs in (flash_tiny(), tiny("eager")):
        with prune(model, strategy) as record:
            model.generate(**make_inputs(BATCHES["two images"]), max_new_tokens=1)
        kept.append([image.indices.tolist() for image in record.images])
    assert kept[0] == kept[1]
    model, _ = flash_tiny()
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {FLASH}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_new_image_on_a_kept_cache(kernels: dict[str, int], positions: Positions, rows: int) -> None:
    """One row with gaps in its positions on a filled cache: transformers would take key lengths from queries."""
    model, make_inputs = flash_tiny()
    plain, _ = tiny()
    prompts = ["look at <0> now", "tell me more about the things in <2> please"][:rows]
    images = images_of(make_inputs, *["<0> <5>", "<2> <6>"][:rows])
    words = ["and <5> why", LATER[1]][:rows]
    cache: Any = DynamicCache(config=model.config.get_text_config())
    with prune(model, ByContent(), positions=positions) as record:
        inputs = make_inputs(prompts)
        first = model.generate(**inputs, past_key_values=cache, **SETTINGS)
        again = say(make_inputs, first.sequences, inputs["attention_mask"], words, images)
        output = model.generate(**again, past_key_values=cache, **SETTINGS)
    kept = [a + b for a, b in zip(kept_of(record, 0, rows), kept_of(record, 1, rows), strict=True)]
    check_turn(plain, again, output, kept, positions)
